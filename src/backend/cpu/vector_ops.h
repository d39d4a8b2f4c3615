// Element-wise vector operations of the CPU backend, float32, dispatched at run time to the best instruction set.
#pragma once

#include <cstdint>

#include "backend/hyperparameters.h"
#include "core/bf16.h"

namespace tidal {

/// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i].
void rms_norm(const float* x, const float* weight, int count, float epsilon, float* out);
/// Rounds to nearest even, exactly as to_bf16().
void floats_to_bf16(const float* from, int count, Bf16* to);
/// GELU's 2 sqrt(2 / pi) (x + 0.044715 x^3) is x (kGeluLinear + kGeluCubic x^2).
inline constexpr float kGeluLinear = 1.59576912f, kGeluCubic = 0.0713548163f;

/// out[i]: what the hidden layer makes of gate[i] and up[i]. `out` may be `gate`.
void activate(Activation activation, const float* gate, const float* up, int count, float* out);
/// x[i] *= 1 / (1 + exp(-gate[i])).
void sigmoid_multiply(const float* gate, int count, float* x);
/// to[i] = silu(sum over t < count of taps[i * count + t] * rows[t][i]).
void convolve_silu(const float* const* rows, const float* taps, int count, int width, float* to);
/// x[i] *= scale / sqrt(|x|^2 + epsilon).
void scale_to_length(float* x, int count, float epsilon, float scale);
/// to[i] += from[i].
void add_to(const float* from, int count, float* to);
/// pooled[i] = max(pooled[i], scores[i]); a NaN on one side loses.
void pool_max(const float* scores, int count, float* pooled);
/// pooled[i] += exp(scores[i] * scale - maximum) * factor; a NaN score adds nothing.
void pool_probabilities(const float* scores, int count, float maximum, float scale, float factor, float* pooled);
/// Softmax weights of one row of raw scores for online softmax: weights[i] = exp(scores[i] * scale - new maximum),
/// their sum added to `sum` after shrinking it. Returns the factor by which earlier output must shrink.
float softmax_step(float* scores, int count, float scale, float& maximum, float& sum);
/// maximum = the highest of scores[i] * scale, and sum of exp(scores[i] * scale - maximum); NaN gives the sum NaN.
void softmax_statistics(const float* scores, int count, float scale, float& maximum, float& sum);
/// The terms of a softmax in place of its scores, scores[i] = 2^(scores[i] * scale - reference), to 3e-7 and 0 below
/// 2^-125. Returns their sum, which is NaN or infinite when a term is.
float softmax_terms(float* scores, int count, float scale, float reference);
/// to[i] = sum over r < count of rows[r * stride + i] * factors[r], in this order; count >= 1.
void weighted_sum(const float* rows, int64_t stride, const float* factors, int count, int width, float* to);
/// scores[h * stride + r] = q[h] . key of row r. q: [heads, head_dim]; rows: [count] rows [K | V] of the cache,
/// head_dim <= kMostHeadDim.
void key_scores(const float* q, int heads, const KvRowLayout& layout, const std::byte* const* rows, int count,
                float* scores, int64_t stride);
/// x[i] = cap * tanh(x[i] / cap), to about 1e-7 of the cap.
void cap_by(float cap, int count, float* x);
/// to[i] *= factor.
void scale_by(float factor, int count, float* to);

}  // namespace tidal
