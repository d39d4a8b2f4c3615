// Rows that prefill rounds to bf16 for its next product, computed and rounded in one pass by AVX512-BF16.
#pragma once

#include "backend/hyperparameters.h"
#include "core/bf16.h"

namespace tidal {

/// True where this processor has what the functions below need.
bool has_rounded_rows();

/// A step of online softmax as softmax_step(), for `count` >= 1 raw scores of a row and scale > 0: to[i] =
/// exp(scores[i] * scale - new maximum), to[i] = 0 for count <= i < `padded`, a multiple of 32. Before a weight is
/// rounded it has a relative error of 2^-18 besides float32's in the exponent; the sum is that of the weights before.
/// NaN stays NaN. `to` may be where `scores` is, with room for `padded` scores.
float softmax_step_to_bf16(const float* scores, int count, int padded, float scale, float& maximum, float& sum,
                           Bf16* to);

/// As activate(), with a relative error of 2^-13 before it is rounded. NaN stays NaN.
void activate_to_bf16(Activation activation, const float* gate, const float* up, int count, Bf16* to);

}  // namespace tidal
