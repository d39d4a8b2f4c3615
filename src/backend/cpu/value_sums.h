// Weighted sums of sketched values, and the sums of softmax terms that they need, on any processor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/value_sketch.h"

namespace tidal {

/// sums[b] = the sum of terms[64 b ... 64 b + 63], b < blocks.
void block_sums(const float* terms, int blocks, float* sums);

/// out[h * head_dim + d] += sum over b < blocks of weights[h * stride + b] * mean of sketches[b] [d], in this order.
void add_means(const ValueSketchLayout& layout, const std::byte* const* sketches, int blocks, const float* weights,
               std::ptrdiff_t stride, int heads, float* out);

/// out[h * head_dim + d] += sum over i < count of weights[h * stride + i] * (code [d] of rows[i] - 1.5), in this order.
/// rows[i]: its codes; the weights have its scale in them.
void add_codes(const ValueSketchLayout& layout, const std::byte* const* rows, int count, const float* weights,
               std::ptrdiff_t stride, int heads, float* out);

}  // namespace tidal
