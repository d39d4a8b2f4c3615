// Selection in one launch, by clusters: the kernel, and how many blocks a cluster has.
#include <algorithm>

#include "backend/cuda/runtime/device.h"
#include "backend/cuda/selection/cluster_launch.h"
#include "backend/cuda/selection/select_cluster.cuh"

namespace tidal::cuda {
namespace {

/// Grid (blocks of a cluster, sets, rows).
template <Ranking kRanking, int kThreads>
__global__ void __launch_bounds__(kThreads, kMostSelectThreads / kThreads)
    select_kernel(const __grid_constant__ SelectArgs args, int slice_room) {
  extern __shared__ __align__(16) char bytes[];
  const int unit = blockIdx.y, row = args.first_row + static_cast<int>(blockIdx.z);
  const SelectMemory memory = select_memory(bytes, slice_room, args.heads / args.units);
  const RowPolicy policy = row_policy(args.tables, row, args.scan, args.budgets);
  const SetSlice slice = begin_set<kThreads>(args, policy, row, memory);
  __syncthreads();
  meet_cluster();
  wait_for_kernels_before();
  if (slice.rank >= slice.blocks) return;

  const SetEnd end = find_end<kRanking, kThreads>(args, policy, slice, memory);
  write_slice<kThreads>(policy, slice, end.search, end.ranks, memory, list_of(args, policy, row, unit),
                        [&](int, int position) {
                          if (!args.kv) return;
                          fetch_row(args, memory.table[position / kBlockTokens - slice.begin / kBlockTokens], position);
                        });
  if (slice.rank == 0 && threadIdx.x == 0) args.counts[args.row_units * row + unit] = end.count;
  if (end.ranks && policy.top_p < 1) synchronise_cluster();  // the others may still read
}

using Kernel = void (*)(SelectArgs, int);

template <int kThreads>
Kernel kernel_of(Ranking ranking) {
  return ranking == Ranking::Raw   ? select_kernel<Ranking::Raw, kThreads>
         : ranking == Ranking::Max ? select_kernel<Ranking::Max, kThreads>
                                   : select_kernel<Ranking::Sum, kThreads>;
}
Kernel kernel_for(Ranking ranking, int threads) {
  return threads == kSelectThreads ? kernel_of<kSelectThreads>(ranking) : kernel_of<kMostSelectThreads>(ranking);
}

/// By how many scores a block of a cluster pools.
int select_threads(int heads, int slice) {
  constexpr int64_t kMany = 32768;
  return int64_t{heads} * slice < kMany ? kSelectThreads : kMostSelectThreads;
}

constexpr const char* kWhat = "selecting positions";

}  // namespace

SelectClusters::SelectClusters(int heads, int max_context) : max_context_(max_context) {
  if (compute_capability() < 90) return;
  for (const int threads : {kSelectThreads, kMostSelectThreads}) {
    ClusterCounts& active = threads == kSelectThreads ? active_ : active_of_many_;
    for (const Ranking ranking : {Ranking::Raw, Ranking::Max, Ranking::Sum}) {
      const void* const kernel = reinterpret_cast<const void*>(kernel_for(ranking, threads));
      const ClusterCounts counts = count_clusters(kernel, threads, [&](int blocks) {
        return select_shared_bytes(blocks, slice_length(max_context, blocks), heads);
      });
      for (size_t i = 0; i < counts.size(); ++i) {
        active[i] = ranking == Ranking::Raw ? counts[i] : std::min(active[i], counts[i]);
      }
    }
  }
}

ClusterChoice SelectClusters::choose(int sets, int heads) const {
  const auto scores = [&](int blocks) { return int64_t{heads} * slice_length(max_context_, blocks); };
  const auto few = [&](int blocks) {
    return select_threads(heads, slice_length(max_context_, blocks)) == kSelectThreads;
  };
  // Twice the threads go through a slice in five eighths of the time.
  return cheapest_cluster(
      sets, [&](int blocks) { return few(blocks) ? active_[blocks] : active_of_many_[blocks]; },
      [&](int blocks) { return few(blocks) ? scores(blocks) : scores(blocks) * 5 / 8; });
}

void launch_select_cluster(const SelectArgs& args, int blocks, cudaStream_t stream) {
  const int slice = slice_length(args.max_context, blocks), heads = args.heads / args.units;
  const int threads = select_threads(heads, slice);
  const ClusterLaunch launch(threads, blocks, args.units, args.run, select_shared_bytes(blocks, slice, heads), stream);
  check(cudaLaunchKernelEx(&launch.config, kernel_for(ranking_of(args), threads), args, slice), kWhat);
}

}  // namespace tidal::cuda
