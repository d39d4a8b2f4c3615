// The sketch of a block of keys: each element in 1, 2 or 4 bits, which Scan layers score positions by.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "backend/kv_row.h"
#include "core/bf16.h"

namespace tidal {

inline constexpr int kBlockTokens = 64;  ///< positions in one block of the KV pool

/// The widths that sketches come in.
inline constexpr std::array<int, 3> kSketchBits = {1, 2, 4};
inline constexpr bool is_sketch_width(int bits) { return bits == 1 || bits == 2 || bits == 4; }

/// Where things are in the sketch of one block and KV head. The key of position p is about
///   K^[d] = minimum[d] + scale[d] * code[p, d].
/// Memory: [head_dim] bf16 minimum, [head_dim] bf16 scale, the codes. Those are made for dot products of 4 channels at
/// a time: 64 bytes hold 16 positions x 4 channels, and `planes()` such quads of channels lie on top of each other in
/// the bits of a byte. Codes behind head_dim are 0.
struct SketchLayout {
  static constexpr int kStripe = 16;  ///< positions of one vector
  static constexpr int kQuad = 4;     ///< channels of a plane of a vector
  static constexpr int kVector = kStripe * kQuad;

  int head_dim = 0;  ///< multiple of 16
  int bits = 2;      ///< 1, 2 or 4

  constexpr int planes() const { return 8 / bits; }
  constexpr int vectors() const {  ///< of one stripe
    return (head_dim + kQuad * planes() - 1) / (kQuad * planes());
  }
  constexpr int codes_offset() const { return 2 * 2 * head_dim; }
  constexpr int64_t bytes() const { return codes_offset() + int64_t{kBlockTokens} * kQuad * vectors(); }
  constexpr int levels() const { return 1 << bits; }

  /// The byte of position p, channel d, and where in it the code begins.
  constexpr int byte(int p, int d) const {
    const int vector = d / kQuad / planes();
    return codes_offset() + (p / kStripe * vectors() + vector) * kVector + p % kStripe * kQuad + d % kQuad;
  }
  constexpr int shift(int d) const { return d / kQuad % planes() * bits; }
};

/// Sketches one block: `tile` is its 64 rows, of `type`, `sketch` its layout.bytes(). Of keys as the cache has them, so
/// that nothing hangs on who has written the block, or from where it was read. The same bits
/// on every backend: a channel's range over the block in equal steps, a code per step; then the minimum and the scale
/// that fit these codes with the least squares. Sums run over the positions in ascending order, in float32 without
/// fused products; minimum and scale are rounded to bf16. Values that are no numbers may give scores that are none.
void sketch_block(const SketchLayout& layout, KvType type, const std::byte* tile, std::byte* sketch);

/// The factor from integer dot products to scores, of one query head and one sketch (see sketch_query()).
struct SketchQuery {
  float base = 0;    ///< q . minimum
  float factor = 0;  ///< of the integer dot product
};

/// What a position's score is made of, in words that every backend follows bit for bit:
///   w[d] = q[d] * scale[d]; top = max |w|; factor = top / 127; weight[d] = w[d] * (127 / top), rounded to the nearest
///   integer, ties to even (0 where top is 0);
///   base = q . minimum in 16 sums (d mod 16) of fused products, which are then added by halves (8 apart, 4, 2, 1);
///   score = fma(factor, sum of weight[d] * code[p, d], base).
/// Plain loops: `weights` [head_dim].
SketchQuery sketch_query(const SketchLayout& layout, const float* q, const std::byte* sketch, int8_t* weights);
/// Scores of the 64 positions of one block for one query head, by plain loops.
void sketch_scores(const SketchLayout& layout, const float* q, const std::byte* sketch, float* scores);

}  // namespace tidal
