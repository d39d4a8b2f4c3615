// The scores of a set's heads pooled to what its positions are ranked by: the same numbers whichever kernel asks.
#pragma once

#include "backend/cuda/scan/running_softmax.cuh"
#include "backend/cuda/selection/select_device.cuh"

namespace tidal::cuda {

/// What positions are ranked by: a head's raw scores, the highest of several heads', or probabilities added up.
enum class Ranking { Raw, Max, Sum };

inline Ranking ranking_of(const SelectArgs& args) {
  if (args.units == args.heads) return Ranking::Raw;
  return args.pooling == Pooling::Max ? Ranking::Max : Ranking::Sum;
}

inline constexpr int kShareThreads = 128;

/// Statistics of a head: first_head + h of the run. Whole warps call it.
__device__ inline SoftmaxPart statistics_of(const SelectArgs& args, int64_t head) {
  return whole_of(args.statistics + head * args.statistic_parts, args.statistic_parts, args.scale);
}

/// The head's maximum and 1 / sum. Where that sum is no number, all scores are gone through once more by the first
/// kShareThreads threads: attention must spread a NaN, pooling must not. All threads of the block call it; `sums`:
/// [kShareThreads / 32], shared memory.
__device__ inline HeadShare head_share(SoftmaxPart whole, const float* scores, int context, float scale, float* sums) {
  if (whole.maximum == negative_infinity()) return {whole.maximum, 0.0f};
  if (is_finite(whole.maximum) && is_finite(whole.sum)) return {whole.maximum, __fdiv_rn(1.0f, whole.sum)};
  float sum = 0;
  if (threadIdx.x < kShareThreads) {
    for (int i = threadIdx.x; i < context; i += kShareThreads) {
      sum = __fadd_rn(sum, __fmul_rn(softmax_term(scores[i], whole.maximum, scale), 0x1p-64f));
    }
  }
  sum = sum_over_warp(sum);
  __syncthreads();
  if (threadIdx.x < kShareThreads && threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kShareThreads / 32; ++w) sum = __fadd_rn(sum, sums[w]);
  return {whole.maximum, __fdiv_rn(1.0f, sum)};
}

__device__ inline float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

/// A head's share in a position's sum, times 2^64.
__device__ inline float add_share(float sum, float score, const HeadShare& of, float scale) {
  return __fmaf_rn(softmax_term(score, of.maximum, scale), of.factor, sum);
}

/// The probability of a position in one head.
__device__ inline float probability(float score, const HeadShare& of, float scale) {
  return __fmul_rn(__fmul_rn(softmax_term(score, of.maximum, scale), of.factor), 0x1p-64f);
}

/// In units of kMassUnits.
__device__ inline unsigned long long mass_of(float probability) {
  return __float2ull_rn(__fmul_rn(probability, kMassUnits));
}

/// Calls use(head, its scores) for all heads but the first, of which a few are asked for before the first is waited
/// for.
template <typename Use>
__device__ inline void for_heads(const SelectArgs& args, const float* scores, int heads, Use use) {
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int first = 1; first < heads; first += kAtOnce) {
    float4 own[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < heads) own[i] = load4(scores + (first + i) * args.score_stride);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < heads) use(first + i, own[i]);
    }
  }
}

/// What four neighbouring positions are ranked by. first: their scores in the set's first head; scores: where these
/// are, the other heads' behind; shares: [heads], read where Ranking::Sum.
template <Ranking kRanking>
__device__ inline void pool_four(const SelectArgs& args, float4 first, const float* scores, int heads,
                                 const HeadShare* shares, float (&ranking)[4]) {
  if constexpr (kRanking == Ranking::Sum) {
    const auto add = [&](const float4& own, const HeadShare& of) {
      ranking[0] = add_share(ranking[0], own.x, of, args.scale);
      ranking[1] = add_share(ranking[1], own.y, of, args.scale);
      ranking[2] = add_share(ranking[2], own.z, of, args.scale);
      ranking[3] = add_share(ranking[3], own.w, of, args.scale);
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) ranking[i] = 0;
    add(first, shares[0]);
    for_heads(args, scores, heads, [&](int h, const float4& own) { add(own, shares[h]); });
#pragma unroll
    for (int i = 0; i < 4; ++i) ranking[i] = __fmul_rn(ranking[i], 0x1p-64f);
    return;
  }
  ranking[0] = first.x, ranking[1] = first.y, ranking[2] = first.z, ranking[3] = first.w;
  if constexpr (kRanking == Ranking::Max) {
    for_heads(args, scores, heads, [&](int, const float4& own) {
      ranking[0] = fmaxf(ranking[0], own.x), ranking[1] = fmaxf(ranking[1], own.y);
      ranking[2] = fmaxf(ranking[2], own.z), ranking[3] = fmaxf(ranking[3], own.w);
    });
  }
}

/// Probabilities of what pool_four() gave, in the set's heads; with Ranking::Max nothing.
template <Ranking kRanking>
__device__ inline float share_of(float ranking, const HeadShare* shares, float scale) {
  if constexpr (kRanking == Ranking::Sum) return ranking;
  if constexpr (kRanking == Ranking::Raw) return probability(ranking, shares[0], scale);
  return 0;
}

}  // namespace tidal::cuda
