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
#include "backend/cuda/selection/select_write.cuh"

namespace tidal::cuda {
namespace {

/// Sends the histogram of a digit to all blocks, each beginning with itself.
__device__ void send_counts(const SetSlice& slice, int digit, const SelectMemory& memory) {
  constexpr int kQuads = kDigitBins / 4;
  uint32_t* const place = memory.received + (digit % kPlaces * static_cast<int>(gridDim.x) + slice.rank) * kDigitBins;
#pragma unroll 1
  for (int i = threadIdx.x; i < slice.blocks * kQuads; i += kSelectThreads) {
    const int quad = i % kQuads, to = slice.rank + i / kQuads;
    send(place + 4 * quad, &memory.shared.arrivals[digit],
         *reinterpret_cast<const uint4*>(&memory.shared.counts[digit][4 * quad]),
         to < slice.blocks ? to : to - slice.blocks);
  }
}

/// The `wanted` highest ranks.
__device__ void search_count(const SetSlice& slice, Search& search, const SelectMemory& memory) {
  SelectShared& shared = memory.shared;
  for (int digit = 0; digit < kSelectDigits; ++digit) {
    if (digit > 0) {
      for_within(slice, memory.distances, search.base, search.span,
                 [&](uint32_t distance, int) { atomicAdd(&shared.counts[digit][search.bin_of(distance)], 1u); });
    }
    __syncthreads();
    send_counts(slice, digit, memory);
    const auto gather = [&](int i) {
      wait_for_bytes(&shared.arrivals[digit]);
      const uint32_t* const counts = memory.received + digit % kPlaces * static_cast<int>(gridDim.x) * kDigitBins + i;
      Bin bin;
#pragma unroll 4
      for (int block = 0; block < slice.blocks; ++block) {
        const uint32_t count = counts[block * kDigitBins];
        bin.count += count;
        bin.count_before += block < slice.rank ? count : 0;
      }
      return bin;
    };
    const uint32_t above = search.above, wanted = search.wanted;
    unsigned long long none = 0;
    if (!find_bin<false>(shared.search, search, none, gather,
                         [&](uint32_t count, unsigned long long) { return count >= wanted; })) {
      return;
    }
    search.wanted -= search.above - above;
    if (search.wanted == search.sharing || search.span == 0) return;
  }
}

/// Top-p, apart from what is in everybody's way: of the positions that the search has found as few as hold, with the
/// reserved ones, enough of the mass.
template <Ranking kRanking>
__device__ __noinline__ Search search_mass(float scale, float top_p, SetSlice slice, uint32_t top, Search search,
                                           SelectMemory memory) {
  SelectShared& shared = memory.shared;
  unsigned long long all = 0, held = 0;
  synchronise_cluster();
  for (int i = 0; i < slice.blocks; ++i) {
    all += load_of_cluster(&shared.mass, i);
    held += load_of_cluster(&shared.reserved_mass, i);
  }
  const double wanted = static_cast<double>(top_p) * static_cast<double>(all);
  const auto enough = [&](unsigned long long mass) { return static_cast<double>(mass) >= wanted; };
  Search shorter;
  if (enough(held)) {
    shorter.span = 0;
    return shorter;
  }
  const auto mass_at = [&](uint32_t distance) {
    return mass_of(share_of<kRanking>(score_of(top - distance), memory.shares, scale));
  };
  shorter.span = search.base + search.span;
  shorter.begin_digit();
  do {
    if (threadIdx.x < kDigitBins) shared.mass_counts[threadIdx.x] = 0, shared.masses[threadIdx.x] = 0;
    __syncthreads();
    for_within(slice, memory.distances, shorter.base, shorter.span, [&](uint32_t distance, int) {
      const uint32_t bin = shorter.bin_of(distance);
      atomicAdd(&shared.mass_counts[bin], 1u);
      atomicAdd(&shared.masses[bin], mass_at(distance));
    });
    synchronise_cluster();
    const auto gather = [&](int i) {
      Bin bin;
#pragma unroll 1
      for (int block = 0; block < slice.blocks; ++block) {
        const uint32_t count = load_of_cluster(&shared.mass_counts[i], block);
        bin.count += count;
        bin.count_before += block < slice.rank ? count : 0;
        bin.mass += load_of_cluster(&shared.masses[i], block);
      }
      return bin;
    };
    const unsigned long long before = held;
    const bool ends = find_bin<true>(shared.search, shorter, held, gather,
                                     [&](uint32_t, unsigned long long mass) { return enough(before + mass); });
    synchronise_cluster();     // the others have read it, too
    if (!ends) return search;  // all of them do not hold enough
  } while (shorter.span > 0);
  // What is left is equal, its mass, too: so many of them that there is enough.
  const unsigned long long each = mass_at(shorter.base);
  uint32_t least = 0, most = shorter.sharing;
  while (least < most) {
    const uint32_t middle = (least + most) / 2;
    if (enough(held + middle * each)) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  shorter.wanted = search.span == 0 && search.base == shorter.base ? min(least, search.wanted) : least;
  return shorter;
}

/// Grid (blocks of a cluster, sets, rows).
template <Ranking kRanking>
__global__ void __launch_bounds__(kSelectThreads, 1024 / kSelectThreads)
    select_kernel(const __grid_constant__ SelectArgs args, int slice_room) {
  extern __shared__ __align__(16) char bytes[];
  const int unit = blockIdx.y, row = args.first_row + static_cast<int>(blockIdx.z);
  SelectShared& shared = *reinterpret_cast<SelectShared*>(bytes);
  auto* const received = reinterpret_cast<uint32_t*>(bytes + sizeof(SelectShared));
  uint32_t* const distances = received + kPlaces * gridDim.x * kDigitBins;
  uint32_t* const above = distances + slice_room;
  uint32_t* const equal = above + slice_room / 32;
  auto* const shares = reinterpret_cast<HeadShare*>(equal + slice_room / 32);
  auto* const table = reinterpret_cast<int32_t*>(shares + args.heads / args.units);
  const SelectMemory memory{shared, received, shares, distances, above, equal, table};
  const RowPolicy policy = row_policy(args.tables, row, args.scan);
  const int length = slice_length(policy.context, gridDim.x);
  SetSlice slice;
  slice.rank = blockIdx.x;
  slice.blocks = (policy.context + length - 1) / length;
  slice.begin = slice.rank * length;
  slice.end = min(policy.context, slice.begin + length);
  const bool ranks = policy.wanted > 0, weighs = policy.top_p < 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < kSelectDigits * kDigitBins; i += kSelectThreads) (&shared.counts[0][0])[i] = 0;
  const int marks = 2 * (slice_room / 32);
#pragma unroll 1
  for (int i = threadIdx.x; i < marks; i += kSelectThreads) above[i] = 0;  // and those of `equal`
  if (threadIdx.x == 0) shared.mass = shared.reserved_mass = 0;
  if (args.kv) {
    const int32_t* const blocks = row_of(args.tables, row).table + slice.begin / kBlockTokens;
    const int count = (slice.end + kBlockTokens - 1) / kBlockTokens - slice.begin / kBlockTokens;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kSelectThreads) table[i] = blocks[i];
  }
  if (threadIdx.x == 0) {
    for (int digit = 0; digit < kSelectDigits; ++digit) {
      expect_bytes(&shared.arrivals[digit], slice.blocks * kDigitBins * sizeof(uint32_t));
    }
  }
  __syncthreads();
  meet_cluster();
  wait_for_kernels_before();
  if (slice.rank >= slice.blocks) return;

  Search search;
  search.wanted = max(policy.wanted, 0);
  if (ranks) {
    const uint32_t top = pool_slice<kRanking>(args, policy, slice, search, memory);
    search_count(slice, search, memory);
    if (weighs) search = search_mass<kRanking>(args.scale, policy.top_p, slice, top, search, memory);
  }
  write_slice(
      args, policy, slice, search, ranks, memory,
      args.positions + static_cast<int64_t>(args.row_positions) * row + static_cast<int64_t>(policy.stride) * unit);
  if (slice.rank == 0 && threadIdx.x == 0) {
    args.counts[args.row_units * row + unit] =
        policy.first + (policy.context - policy.last) + search.above + search.wanted;
  }
  if (ranks && weighs) synchronise_cluster();  // the others may still read
}

using Kernel = void (*)(SelectArgs, int);

Kernel kernel_for(Ranking ranking) {
  return ranking == Ranking::Raw   ? select_kernel<Ranking::Raw>
         : ranking == Ranking::Max ? select_kernel<Ranking::Max>
                                   : select_kernel<Ranking::Sum>;
}

/// A launch in clusters, early.
struct ClusterLaunch {
  ClusterLaunch(int blocks, int sets, int rows, size_t bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(blocks, sets, rows);
    config.blockDim = dim3(kSelectThreads);
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

Kernel prepared(Ranking ranking) {
  const Kernel kernel = kernel_for(ranking);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit()), kWhat);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), kWhat);
  return kernel;
}

}  // namespace

SelectClusters::SelectClusters(int heads, int max_context) : max_context_(max_context) {
  if (compute_capability() < 90) return;
  for (const Ranking ranking : {Ranking::Raw, Ranking::Max, Ranking::Sum}) {
    const Kernel kernel = prepared(ranking);
    for (int blocks = kLeastBlocks; blocks <= kMostBlocks; ++blocks) {
      const size_t bytes = select_shared_bytes(blocks, slice_length(max_context, blocks), heads);
      if (bytes > static_cast<size_t>(shared_memory_limit())) continue;
      const ClusterLaunch launch(blocks, 1, 1, bytes, nullptr);
      int clusters = 0;
      // Not every device runs clusters of more than 8: an error is an answer.
      if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) clusters = 0;
      cudaGetLastError();
      active_[blocks] = ranking == Ranking::Raw ? clusters : std::min(active_[blocks], clusters);
    }
  }
}

int SelectClusters::blocks(int sets, int heads) const {
  // What a cluster costs beside its positions, times the heads pooled, and what each of its blocks: so many of them.
  constexpr int64_t kOverhead = 10000, kBlockOverhead = 400;
  int best = 0;
  int64_t least = 0;
  for (int blocks = kLeastBlocks; blocks <= kMostBlocks; ++blocks) {
    if (active_[blocks] == 0) continue;
    // Beside the blocks of other kernels, which come and go, the last eighth does not fit.
    const int at_once = std::max(1, active_[blocks] * 7 / 8);
    const int64_t waves = (sets + at_once - 1) / at_once;
    const int64_t cost =
        waves * (kOverhead + kBlockOverhead * blocks + int64_t{heads} * slice_length(max_context_, blocks));
    if (best == 0 || cost < least) best = blocks, least = cost;
  }
  return best;
}

void launch_select_cluster(const SelectArgs& args, int blocks, cudaStream_t stream) {
  const int slice = slice_length(args.max_context, blocks);
  const ClusterLaunch launch(blocks, args.units, args.run, select_shared_bytes(blocks, slice, args.heads / args.units),
                             stream);
  check(cudaLaunchKernelEx(&launch.config, kernel_for(ranking_of(args)), args, slice), kWhat);
}

}  // namespace tidal::cuda
