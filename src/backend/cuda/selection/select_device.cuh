// The rules of backend/policy.h as kernels need them.
#pragma once

#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/selection/rank_key.cuh"
#include "backend/cuda/selection/select.h"
#include "backend/cuda/selection/warp_sums.cuh"
#include "backend/sketch.h"

namespace tidal::cuda {

/// Probability 2^-44, so that sums of them are exact and the same in any order; 2^20 whole heads fit 64 bits.
inline constexpr float kMassUnits = 0x1p44f;

/// What a row selects: the positions before `first` and from `last` on whatever their scores, `wanted` of the others.
struct RowPolicy {
  int first;
  int last;
  int wanted;
  int context;
  int stride;  ///< of the row's sets of positions
  float top_p;
};

/// Of `budgets` budgets (tier_policy()).
__device__ inline RowPolicy row_policy(const StepTables& tables, int row, bool scan, int budgets = 1) {
  const DeviceChunk& chunk = tables.chunks[tables.row_chunk[row]];
  RowPolicy policy;
  policy.context = tables.positions[row] + 1;
  int budget = chunk.budget, recent = chunk.recent;
  if (budgets > 1) budget = static_cast<int>(min(int64_t{budget} * budgets, int64_t{policy.context}));
  policy.stride = budget + kBlockTokens - 1;  // most_selected()
  if (scan) {                                 // scan_policy()
    const int filling = policy.context % kBlockTokens;
    budget = min(budget + filling, policy.context);
    recent = max(recent, filling);
  }
  recent = min(max(recent, 1), budget);
  policy.first = min(chunk.sinks, budget - recent);
  policy.last = policy.context - recent;
  policy.wanted = budget - recent - policy.first;
  policy.top_p = chunk.top_p;
  return policy;
}

/// A head's softmax for pooling.
struct HeadShare {
  float maximum;  ///< raw score
  float factor;   ///< 1 / the sum of the terms, 0 where the head has no score above -infinity
};

/// The power of two behind the point of terms: float32 has no room for probabilities below 2^-126, but the reference,
/// in double, tells them apart down to the last float32 below, 2^-149.
inline constexpr int kTermShift = 64;

/// 2^64 * exp((score - maximum) / sqrt(head_dim)). NaN gives 0; at a maximum of +infinity what equals it gives all.
__device__ inline float softmax_term(float score, float maximum, float scale) {
  // fmaxf takes what is no number, and infinity - infinity was looked after by the equality.
  float x = score == maximum ? 0.0f : fmaxf(__fmul_rn(__fsub_rn(score, maximum), scale), -300.0f);
  const bool small = x < -62.0f;
  x = small ? __fadd_rn(x, static_cast<float>(kTermShift)) : x;
  const float power = power_of_two(x);
  return small ? power : __fmul_rn(power, 0x1p64f);
}

}  // namespace tidal::cuda
