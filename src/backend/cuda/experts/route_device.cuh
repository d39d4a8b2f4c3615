// From a row's logits to its choice.
#pragma once

#include "backend/cuda/experts/route.h"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/device_functions.cuh"

namespace tidal::cuda {

/// Higher for a higher logit, of equal ones for the lower expert; never 0.
__device__ inline uint64_t key_of(float logit, int expert) {
  const uint32_t bits = isnan(logit) ? 0xff800000u : __float_as_uint(logit == 0 ? 0.0f : logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - expert);
}

/// Writes the choice of a row by one warp. logits: [count] and that of the switch; `expert`: of lane k the k-th.
__device__ inline void write_choice(const RouteParams& p, int64_t row, const float* logits, float of_switch,
                                    int expert) {
  const int count = p.experts.count, used = p.experts.used, lane = threadIdx.x % 32;
  const float highest = logits[__shfl_sync(0xffffffffu, expert, 0)];
  const float top = isnan(highest) ? negative_infinity() : highest;
  const float term = lane < used ? expf(logits[expert] - top) : 0.0f;
  // Of the chosen ones, or of every 32nd of all.
  float sum = term;
  if (!p.experts.weights_sum_to_one) {
    sum = 0;
    for (int e = lane; e < count; e += 32) sum += expf(logits[e] - top);
  }
  sum = tree_sum<1, 16>(sum);
  if (lane < used) {
    p.choices.experts[row * used + lane] = expert;
    p.choices.weights[row * used + lane] = term / sum;
  }
  if (lane == 0 && p.shared_switch) p.choices.shared[row] = 1.0f / (1.0f + expf(-of_switch));
}

}  // namespace tidal::cuda
