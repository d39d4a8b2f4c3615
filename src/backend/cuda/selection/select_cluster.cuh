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
#pragma once

#include "backend/cuda/selection/select_search.cuh"
#include "backend/cuda/selection/select_write.cuh"

namespace tidal::cuda {

/// Bytes of the memory that lie at `bytes`: select_shared_bytes(). Distances are the last of it.
__device__ inline SelectMemory select_memory(char* bytes, int slice_room, int heads) {
  auto* const received = reinterpret_cast<uint32_t*>(bytes + sizeof(SelectShared));
  auto* const shares = reinterpret_cast<HeadShare*>(received + kPlaces * gridDim.x * kDigitBins);
  auto* const table = reinterpret_cast<int32_t*>(shares + heads);
  auto* const distances = reinterpret_cast<uint32_t*>(bytes + select_fixed_bytes(gridDim.x, slice_room, heads));
  return {*reinterpret_cast<SelectShared*>(bytes), received, shares, distances, table};
}

/// Clears the memory of this block and says which slice it has. Those that have none (rank >= blocks) may leave once
/// all of the cluster have met.
template <int kThreads>
__device__ inline SetSlice begin_set(const SelectArgs& args, const RowPolicy& policy, int row,
                                     const SelectMemory& memory) {
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

/// Where a set ends.
struct SetEnd {
  Search search;
  bool ranks;  ///< whether positions other than the reserved ones are taken
  int count;   ///< positions of the set
};

/// Pools the slice and finds the end of the set, with the other blocks. All threads of the blocks that have positions
/// call it, behind the kernels before.
template <Ranking kRanking, int kThreads>
__device__ inline SetEnd find_end(const SelectArgs& args, const RowPolicy& policy, const SetSlice& slice,
                                  const SelectMemory& memory) {
  SetEnd end;
  end.ranks = policy.wanted > 0;
  end.search.shift = kBoundedShift;
  end.search.wanted = max(policy.wanted, 0);
  if (end.ranks) {
    const uint32_t top = pool_slice<kRanking, kThreads>(args, policy, slice, end.search, memory);
    search_count<kThreads>(slice, end.search, memory);
    if (policy.top_p < 1) {
      end.search = search_mass<kRanking, kThreads>(args.scale, policy.top_p, slice, top, end.search, memory);
    }
  }
  end.count = policy.first + (policy.context - policy.last) + end.search.above + end.search.wanted;
  return end;
}

/// The list of set `unit` of a row, in global memory.
__device__ inline int32_t* list_of(const SelectArgs& args, const RowPolicy& policy, int row, int unit) {
  return args.positions + static_cast<int64_t>(args.row_positions) * row + static_cast<int64_t>(policy.stride) * unit;
}

}  // namespace tidal::cuda
