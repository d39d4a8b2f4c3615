// The sketch of a block of values: their mean, and 2 bits an element of what each row differs from it by. What Scan
// layers know of positions that they do not select (Completion).
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/kv_row.h"

namespace tidal {

/// Where things are in the sketch of the values of one block and KV head. The value of position p is about
///   V^[d] = mean[d] + scale[p] * (code[p, d] - 1.5).
/// Memory: [head_dim] bf16 mean, [64] bf16 scale, the codes row by row, so that single rows are read in one piece. 16
/// bytes hold 64 channels: the bits from 2 i on of byte j are the code of channel 16 i + j. Codes behind head_dim are
/// 0.
struct ValueSketchLayout {
  static constexpr int kPlane = 16;          ///< channels whose codes begin at the same bit
  static constexpr int kRowsOfBlock = 64;    ///< kBlockTokens
  static constexpr int kGroup = 4 * kPlane;  ///< channels of 16 bytes

  int head_dim = 0;  ///< multiple of 16

  constexpr int row_bytes() const { return (head_dim + kGroup - 1) / kGroup * kPlane; }  ///< codes of a row
  constexpr int scales_offset() const { return 2 * head_dim; }
  constexpr int codes_offset() const { return scales_offset() + 2 * kRowsOfBlock; }
  constexpr int64_t bytes() const { return codes_offset() + int64_t{kRowsOfBlock} * row_bytes(); }

  /// The byte of position p, channel d, and where in it the code begins.
  constexpr int byte(int p, int d) const { return codes_offset() + p * row_bytes() + d / kGroup * kPlane + d % kPlane; }
  constexpr int shift(int d) const { return d % kGroup / kPlane * 2; }
};

/// Sketches the values of one block: `tile` is its 64 rows, of `type`, `sketch` its layout.bytes(). Of values as the
/// cache has them; the same bits on every backend:
///   mean  = the sum over the positions, in ascending order, / 64, rounded to bf16;
///   r[d]  = V[d] - mean[d]; rms = sqrt(the sum of r[d] r[d] / head_dim);
///   code  = floor(r / rms + 2), 0 to 3 (2 where rms is 0);
///   scale = the sum of r[d] c[d] / the sum of c[d] c[d], with c = code - 1.5: least squares, rounded to bf16.
/// Sums over d are 16 (d mod 16), which are then added by halves (8 apart, 4, 2, 1); all in float32, without fused
/// products. Values that are no numbers may give rows that are none.
void sketch_values(const ValueSketchLayout& layout, KvType type, const std::byte* tile, std::byte* sketch);

/// mean [head_dim].
void value_sketch_mean(const ValueSketchLayout& layout, const std::byte* sketch, float* mean);
/// The estimate of the value of position p, [head_dim].
void value_sketch_row(const ValueSketchLayout& layout, const std::byte* sketch, int p, float* value);

}  // namespace tidal
