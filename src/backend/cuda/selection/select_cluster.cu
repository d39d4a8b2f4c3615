// From raw scores to selected positions in one launch (compute capability 9.0 and above): a cluster of blocks for a
// set.
//
// Each block has a slice of the positions. It pools their scores, keeps what they are ranked by in shared memory, as
// the distance from a bound on the highest, and makes a histogram of the first digit. All blocks read all histograms
// and so find the same bin without a word more; then the same with the next digit, among the positions in that bin
// only, until the set ends between two bins or all that are left are equal. Ties go to the lower position: the
// histograms say how many the blocks before have. Then every block writes its own, in order, where those before end.
//
// Counts and masses are integers, so that a set does not depend on how it was cut.
#include <algorithm>

#include "backend/cuda/runtime/device.h"
#include "backend/cuda/selection/select_search.cuh"
#include "backend/cuda/selection/select_write.cuh"

namespace tidal::cuda {
namespace {

/// Bytes of the memory that lie at `bytes`: select_shared_bytes(). Distances are the last of it.
__device__ SelectMemory select_memory(char* bytes, int slice_room, int heads) {
  auto* const received = reinterpret_cast<uint32_t*>(bytes + sizeof(SelectShared));
  auto* const shares = reinterpret_cast<HeadShare*>(received + kPlaces * gridDim.x * kDigitBins);
  auto* const table = reinterpret_cast<int32_t*>(shares + heads);
  auto* const distances = reinterpret_cast<uint32_t*>(bytes + select_fixed_bytes(gridDim.x, slice_room, heads));
  return {*reinterpret_cast<SelectShared*>(bytes), received, shares, distances, table};
}

/// Clears the memory of this block and says which slice it has. Those that have none (rank >= blocks) may leave once
/// all of the cluster have met.
template <int kThreads>
__device__ SetSlice begin_set(const SelectArgs& args, const RowPolicy& policy, int row, const SelectMemory& memory) {
  const int length = slice_length(policy.context, gridDim.x);
  SelectShared& shared = memory.shared;
  SetSlice slice;
  slice.rank = blockIdx.x;
  slice.blocks = (policy.context + length - 1) / length;
  slice.begin = slice.rank * length;
  slice.end = min(policy.context, slice.begin + length);
#pragma unroll 1
  for (int i = threadIdx.x; i < kSelectDigits * kDigitBins; i += kThreads) (&shared.counts[0][0])[i] = 0;
  if (threadIdx.x == 0) shared.mass = shared.reserved_mass = 0, shared.listed_count = 0;
  if (args.kv) {
    const int32_t* const blocks = row_of(args.tables, row).table + slice.begin / kBlockTokens;
    const int count = (slice.end - slice.begin + kBlockTokens - 1) / kBlockTokens;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) memory.table[i] = blocks[i];
  }
  if (threadIdx.x == 0) {
    for (int digit = 0; digit < kSelectDigits; ++digit) {
      expect_bytes(&shared.arrivals[digit], slice.blocks * kDigitBins * sizeof(uint32_t));
    }
  }
  return slice;
}

/// Grid (blocks of a cluster, sets, rows).
template <Ranking kRanking, int kThreads>
__global__ void __launch_bounds__(kThreads, kMostSelectThreads / kThreads)
    select_kernel(const __grid_constant__ SelectArgs args, int slice_room) {
  extern __shared__ __align__(16) char bytes[];
  const int unit = blockIdx.y, row = args.first_row + static_cast<int>(blockIdx.z);
  const SelectMemory memory = select_memory(bytes, slice_room, args.heads / args.units);
  const RowPolicy policy = row_policy(args.tables, row, args.scan);
  const SetSlice slice = begin_set<kThreads>(args, policy, row, memory);
  __syncthreads();
  meet_cluster();
  wait_for_kernels_before();
  if (slice.rank >= slice.blocks) return;

  const bool ranks = policy.wanted > 0, weighs = policy.top_p < 1;
  Search search;
  search.shift = kBoundedShift;
  search.wanted = max(policy.wanted, 0);
  if (ranks) {
    const uint32_t top = pool_slice<kRanking, kThreads>(args, policy, slice, search, memory);
    search_count<kThreads>(slice, search, memory);
    if (weighs) search = search_mass<kRanking, kThreads>(args.scale, policy.top_p, slice, top, search, memory);
  }
  write_slice<kThreads>(
      args, policy, slice, search, ranks, memory,
      args.positions + static_cast<int64_t>(args.row_positions) * row + static_cast<int64_t>(policy.stride) * unit);
  if (slice.rank == 0 && threadIdx.x == 0) {
    args.counts[args.row_units * row + unit] =
        policy.first + (policy.context - policy.last) + search.above + search.wanted;
  }
  if (ranks && weighs) synchronise_cluster();  // the others may still read
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

/// A launch in clusters, early.
struct ClusterLaunch {
  ClusterLaunch(int threads, int blocks, int sets, int rows, size_t bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(blocks, sets, rows);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;

  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
};

constexpr const char* kWhat = "selecting positions";

Kernel prepared(Ranking ranking, int threads) {
  const Kernel kernel = kernel_for(ranking, threads);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit()), kWhat);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), kWhat);
  return kernel;
}

}  // namespace

SelectClusters::SelectClusters(int heads, int max_context) : max_context_(max_context) {
  if (compute_capability() < 90) return;
  for (const int threads : {kSelectThreads, kMostSelectThreads}) {
    Active& active = threads == kSelectThreads ? active_ : active_of_many_;
    for (const Ranking ranking : {Ranking::Raw, Ranking::Max, Ranking::Sum}) {
      const Kernel kernel = prepared(ranking, threads);
      for (int blocks = kLeastBlocks; blocks <= kMostBlocks; ++blocks) {
        const size_t bytes = select_shared_bytes(blocks, slice_length(max_context, blocks), heads);
        if (bytes > static_cast<size_t>(shared_memory_limit())) continue;
        const ClusterLaunch launch(threads, blocks, 1, 1, bytes, nullptr);
        int clusters = 0;
        // Not every device runs clusters of more than 8: an error is an answer.
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) clusters = 0;
        cudaGetLastError();
        active[blocks] = ranking == Ranking::Raw ? clusters : std::min(active[blocks], clusters);
      }
    }
  }
}

int SelectClusters::blocks(int sets, int heads) const {
  // What a cluster costs beside its positions, times the heads pooled, and what each of its blocks: so many of them.
  constexpr int64_t kOverhead = 10000, kBlockOverhead = 400;
  int best = 0;
  int64_t least = 0;
  for (int blocks = kLeastBlocks; blocks <= kMostBlocks; ++blocks) {
    const int slice = slice_length(max_context_, blocks);
    const Active& active = select_threads(heads, slice) == kSelectThreads ? active_ : active_of_many_;
    if (active[blocks] == 0) continue;
    // Beside the blocks of other kernels, which come and go, the last eighth does not fit.
    const int at_once = std::max(1, active[blocks] * 7 / 8);
    const int64_t waves = (sets + at_once - 1) / at_once;
    const int64_t cost = waves * (kOverhead + kBlockOverhead * blocks + int64_t{heads} * slice);
    if (best == 0 || cost < least) best = blocks, least = cost;
  }
  return best;
}

void launch_select_cluster(const SelectArgs& args, int blocks, cudaStream_t stream) {
  const int slice = slice_length(args.max_context, blocks), heads = args.heads / args.units;
  const int threads = select_threads(heads, slice);
  const ClusterLaunch launch(threads, blocks, args.units, args.run, select_shared_bytes(blocks, slice, heads), stream);
  check(cudaLaunchKernelEx(&launch.config, kernel_for(ranking_of(args), threads), args, slice), kWhat);
}

}  // namespace tidal::cuda
