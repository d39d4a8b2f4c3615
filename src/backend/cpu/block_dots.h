// Dot products with weights in blocks of 32 (q4_0, q4_1, q5_0, q5_1, q8_0) by AVX512-VNNI, several rows at once.
#pragma once

#include <cstdint>

#include "backend/weights.h"

namespace tidal {

/// Activations of two blocks of 32, quantised to 8 bits. Weights are taken as unsigned numbers w = u - offset, so that
/// w.x = scale * (u.q - offset * sum q).
struct alignas(64) ActivationPair {
  int8_t q[64];
  int32_t start[16];  ///< -offset * sum q of the block in elements 0 and 8, else 0: where the sums of u.q begin
  float scale[16];    ///< of the first block eight times, then of the second
  float sums[8];      ///< scale * sum q of the first and the second block, four times: for types with a minimum
};

/// True where this processor and this type of weights have a kernel here.
bool has_block_dots(ggml_type type);
/// ActivationPairs of a row of `width` elements.
inline int64_t activation_pairs(int64_t width) { return (width + 63) / 64; }
/// Quantises one row for weights of `type`: to [activation_pairs(width)]. A block that holds NaN or infinity gets the
/// scale NaN.
void quantise_for_block_dots(ggml_type type, const float* x, int width, ActivationPair* to);

/// Most rows of activations that one call takes.
inline constexpr int kMaxBlockDotRows = 4;
/// results[r * stride + o] = weight row (first + o) . x row r, for o < count and r < rows. x: [rows] of
/// activation_pairs(weight.cols). What a row of x gets does not depend on the others.
void block_dots(const Weight& weight, int64_t first, int count, const ActivationPair* const* x, int rows,
                float* results, int stride);

}  // namespace tidal
