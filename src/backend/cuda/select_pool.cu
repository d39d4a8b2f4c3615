// What positions are ranked by: the scores of the heads of a set pooled, and a first histogram of their keys.
#include <algorithm>

#include "backend/cuda/select_device.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPiece = 4 * kThreads;  // positions of a CTA at a time
constexpr int kMostPieces = 128;      // CTAs of a set
constexpr int kMostCtas = 1024;       // of a launch, but for a few a set

enum class Ranking { Raw, Max, Sum };

__device__ float sum_over_warp(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, apart));
  return value;
}

/// The head's maximum and 1 / sum. Where that sum is no number, all scores are gone through once more: attention must
/// spread a NaN, pooling must not. All threads call it.
__device__ HeadShare head_share(SoftmaxPart whole, const float* scores, int context, float scale, float* sums) {
  if (whole.maximum == negative_infinity()) return {whole.maximum, 0.0f};
  if (is_finite(whole.maximum) && is_finite(whole.sum)) return {whole.maximum, __fdiv_rn(1.0f, whole.sum)};
  float sum = 0;
  for (int i = threadIdx.x; i < context; i += kThreads) {
    sum = __fadd_rn(sum, __fmul_rn(softmax_term(scores[i], whole.maximum, scale), 0x1p-64f));
  }
  sum = sum_over_warp(sum);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum = __fadd_rn(sum, sums[w]);
  return {whole.maximum, __fdiv_rn(1.0f, sum)};
}

__device__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

/// Grid (pieces, sets, rows).
template <Ranking kRanking>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ SelectArgs args) {
  extern __shared__ HeadShare shares[];  // [heads of a set]
  __shared__ uint32_t bins[kBins];
  __shared__ float sums[kThreads / 32];
  const int unit = blockIdx.y, run_row = blockIdx.z, heads = args.heads / args.units;
  const RowPolicy policy = row_policy(args.tables, args.first_row + run_row, args.scan);
  wait_for_kernels_before();
  if (policy.wanted <= 0 || static_cast<int>(blockIdx.x) * kPiece >= policy.context) return;
  for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
  const bool weighs = policy.top_p < 1;
  const int64_t first_head = static_cast<int64_t>(run_row) * args.heads + unit * heads;
  const int64_t set = static_cast<int64_t>(run_row) * args.units + unit;
  const float* const scores = args.scores + first_head * args.score_stride;
  float* const pooled = args.pooled + set * args.score_stride;
  if (kRanking == Ranking::Sum || (kRanking == Ranking::Raw && weighs)) {
    for (int h = 0; h < heads; ++h) {
      const HeadShare share =
          head_share(args.statistics[first_head + h], scores + h * args.score_stride, policy.context, args.scale, sums);
      if (threadIdx.x == 0) shares[h] = share;
    }
  }
  __syncthreads();

  unsigned long long mass = 0;
  for (int begin = blockIdx.x * kPiece; begin < policy.context; begin += gridDim.x * kPiece) {
    const int at = begin + 4 * static_cast<int>(threadIdx.x);
    if (at >= policy.context) continue;
    float ranking[4], share[4] = {};
    if constexpr (kRanking == Ranking::Sum) {
#pragma unroll 8
      for (int h = 0; h < heads; ++h) {
        const float4 own = load4(scores + h * args.score_stride + at);
        const HeadShare of = shares[h];
        share[0] = __fmaf_rn(softmax_term(own.x, of.maximum, args.scale), of.factor, share[0]);
        share[1] = __fmaf_rn(softmax_term(own.y, of.maximum, args.scale), of.factor, share[1]);
        share[2] = __fmaf_rn(softmax_term(own.z, of.maximum, args.scale), of.factor, share[2]);
        share[3] = __fmaf_rn(softmax_term(own.w, of.maximum, args.scale), of.factor, share[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) ranking[i] = share[i] = __fmul_rn(share[i], 0x1p-64f);
    } else {
      const float4 own = load4(scores + at);
      ranking[0] = own.x, ranking[1] = own.y, ranking[2] = own.z, ranking[3] = own.w;
      if (kRanking == Ranking::Raw && weighs) {
        const HeadShare of = shares[0];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          share[i] = __fmul_rn(__fmul_rn(softmax_term(ranking[i], of.maximum, args.scale), of.factor), 0x1p-64f);
        }
      }
    }
    if constexpr (kRanking == Ranking::Max) {
#pragma unroll 8
      for (int h = 1; h < heads; ++h) {
        const float4 own = load4(scores + h * args.score_stride + at);
        ranking[0] = fmaxf(ranking[0], own.x), ranking[1] = fmaxf(ranking[1], own.y);
        ranking[2] = fmaxf(ranking[2], own.z), ranking[3] = fmaxf(ranking[3], own.w);
      }
    }
    if (kRanking != Ranking::Raw) {
      *reinterpret_cast<float4*>(pooled + at) = {ranking[0], ranking[1], ranking[2], ranking[3]};
    } else if (weighs) {
      *reinterpret_cast<float4*>(pooled + at) = {share[0], share[1], share[2], share[3]};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at + i >= policy.first && at + i < policy.last)
        atomicAdd(&bins[rank_key(ranking[i]) >> (32 - kFirstBits)], 1u);
      if (weighs && at + i < policy.context) mass += __float2ull_rn(__fmul_rn(share[i], kMassUnits));
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (bins[i] > 0) atomicAdd(args.histogram + set * kBins + i, bins[i]);
  }
  if (weighs) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, apart);
    if (threadIdx.x % 32 == 0 && mass > 0) atomicAdd(args.mass + set, mass);
  }
}

}  // namespace

void launch_pool(const SelectArgs& args, cudaStream_t stream) {
  // A CTA goes on to further pieces: those that find none, at short contexts, cost time, too.
  const int needed = (args.max_context + kPiece - 1) / kPiece;
  const int pieces = std::min({needed, kMostPieces, std::max(4, kMostCtas / (args.units * args.run))});
  const dim3 grid(pieces, args.units, args.run);
  const size_t shared = sizeof(HeadShare) * (args.heads / args.units);
  const auto kernel = args.scope == Scope::Head      ? pool_kernel<Ranking::Raw>
                      : args.pooling == Pooling::Max ? pool_kernel<Ranking::Max>
                                                     : pool_kernel<Ranking::Sum>;
  launch("pooling scores", Start::Early, kernel, grid, dim3(kThreads), shared, stream, args);
}

}  // namespace tidal::cuda
