// From what a block of a selecting cluster knows of its slice to the list of selected positions.
#pragma once

#include "backend/cuda/selection/select_slice.cuh"

namespace tidal::cuda {

/// Has the keys and values of a position on their way to the L2, for the attention behind.
__device__ inline void fetch_row(const SelectArgs& args, int32_t block, int position) {
  const int kv_head = static_cast<int>(blockIdx.y) * args.kv_heads / args.units, bytes = 4 * args.head_dim;
  const int64_t tile = static_cast<int64_t>(block) * args.kv_heads + kv_head;
  const char* const from =
      reinterpret_cast<const char*>(args.kv) + (tile * kBlockTokens + position % kBlockTokens) * bytes;
#pragma unroll 1
  for (int i = 0; i < bytes; i += 128) prefetch(from + i);
}

/// The bits of positions [begin, end) in a word whose first position is 0; either may lie outside of it.
__device__ inline uint32_t bits_between(int begin, int end) {
  const auto below = [](int position) {
    return position <= 0 ? 0u : position >= 32 ? 0xffffffffu : (1u << position) - 1;
  };
  return below(end) & ~below(begin);
}

/// Writes what is selected of the slice, in order. `ranks`: whether any but the reserved positions are.
__device__ inline void write_slice(const SelectArgs& args, const RowPolicy& policy, const SetSlice& slice,
                                   const Search& search, bool ranks, const SelectMemory& memory, int32_t* positions) {
  const int words = (slice.end - slice.begin + 31) / 32;
  if (ranks) {
    for_within(slice, memory.distances, 0, search.base + search.span, [&](uint32_t distance, int i) {
      atomicOr((distance < search.base ? memory.above : memory.equal) + i / 32, 1u << i % 32);
    });
  }
  __syncthreads();
  const int own = (words + kSelectThreads - 1) / kSelectThreads;
  const int begin = min(words, static_cast<int>(threadIdx.x) * own), end = min(words, begin + own);
  const auto above = [&](int word) {
    const int first = slice.begin + 32 * word;
    return memory.above[word] | bits_between(0, policy.first - first) |
           bits_between(policy.last - first, slice.end - first);
  };
  uint32_t counts = 0;  // above in the lower half, equal in the upper
#pragma unroll 1
  for (int i = begin; i < end; ++i) counts += __popc(above(i)) | __popc(memory.equal[i]) << 16;
  counts = sum_before(counts, memory.shared.warp_sums);
  // Of the equal ones the first `wanted` of all blocks.
  const uint32_t taken_before = min(search.sharing_before, search.wanted), left = search.wanted - taken_before;
  uint32_t equal_before = counts >> 16;
  uint32_t at = min(policy.first, slice.begin) + max(0, slice.begin - policy.last) + search.above_before +
                taken_before + (counts & 0xffffu) + min(equal_before, left);
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    uint32_t equal = memory.equal[i];
#pragma unroll 1
    for (uint32_t rest = equal; rest != 0; rest &= rest - 1) {
      if (equal_before++ >= left) equal &= ~(rest & -rest);
    }
    const uint32_t taken = above(i) | equal;
    memory.above[i] = taken, memory.equal[i] = at;
    at += __popc(taken);
  }
  __syncthreads();
  // A lane a position, of the words that have any; neighbours, which have many together, go to different warps.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int group = 0; group < words; group += kSelectThreads) {
    const int own_word = group + warp + kSelectWarps * lane;
    const bool inside = own_word < words;
    const uint32_t own_taken = inside ? memory.above[own_word] : 0, own_at = inside ? memory.equal[own_word] : 0;
#pragma unroll 1
    for (uint32_t rest = __ballot_sync(0xffffffffu, own_taken != 0); rest != 0; rest &= rest - 1) {
      const int from = __ffs(rest) - 1;
      const uint32_t taken = __shfl_sync(0xffffffffu, own_taken, from);
      const uint32_t first = __shfl_sync(0xffffffffu, own_at, from);
      if ((taken >> lane & 1) == 0) continue;
      const int position = slice.begin + 32 * (group + warp + kSelectWarps * from) + lane;
      positions[first + __popc(taken & ((1u << lane) - 1))] = position;
      if (args.kv) fetch_row(args, memory.table[position / kBlockTokens - slice.begin / kBlockTokens], position);
    }
  }
}

}  // namespace tidal::cuda
