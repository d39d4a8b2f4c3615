// What positions are ranked by: the scores of the heads of a set pooled, and a first histogram of their keys.
#include <algorithm>

#include "backend/cuda/selection/select_pool.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = kShareThreads;
constexpr int kPiece = 4 * kThreads;  // positions of a CTA at a time
constexpr int kMostPieces = 128;      // CTAs of a set
constexpr int kMostCtas = 1024;       // of a launch, but for a few a set

/// Grid (pieces, sets, rows).
template <Ranking kRanking>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ SelectArgs args) {
  extern __shared__ HeadShare shares[];  // [heads of a set]
  __shared__ uint32_t bins[kBins];
  __shared__ float sums[kShareThreads / 32];
  const int unit = blockIdx.y, run_row = blockIdx.z, heads = args.heads / args.units;
  const RowPolicy policy = row_policy(args.tables, args.first_row + run_row, args.scan, args.budgets);
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
      const HeadShare share = head_share(statistics_of(args, first_head + h), scores + h * args.score_stride,
                                         policy.context, args.scale, sums);
      if (threadIdx.x == 0) shares[h] = share;
    }
  }
  __syncthreads();

  unsigned long long mass = 0;
  for (int begin = blockIdx.x * kPiece; begin < policy.context; begin += gridDim.x * kPiece) {
    const int at = begin + 4 * static_cast<int>(threadIdx.x);
    if (at >= policy.context) continue;
    float ranking[4], share[4] = {};
    pool_four<kRanking>(args, load4(scores + at), scores + at, heads, shares, ranking);
    if (kRanking == Ranking::Sum || weighs) {
#pragma unroll
      for (int i = 0; i < 4; ++i) share[i] = share_of<kRanking>(ranking[i], shares, args.scale);
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
      if (weighs && at + i < policy.context) mass += mass_of(share[i]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (bins[i] > 0) atomicAdd(args.histogram + set * kBins + i, bins[i]);
  }
  if (weighs) {
    mass = sum_over_warp(mass);
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
  const Ranking ranking = ranking_of(args);
  const auto kernel = ranking == Ranking::Raw   ? pool_kernel<Ranking::Raw>
                      : ranking == Ranking::Max ? pool_kernel<Ranking::Max>
                                                : pool_kernel<Ranking::Sum>;
  launch("pooling scores", Start::Early, kernel, grid, dim3(kThreads), shared, stream, args);
}

}  // namespace tidal::cuda
