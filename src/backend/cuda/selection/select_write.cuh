// From what a block of a selecting cluster knows of its slice to the list of selected positions.
#pragma once

#include "backend/cuda/selection/select_slice.cuh"

namespace tidal::cuda {

/// Has the keys and values of a position on their way to the L2, for the attention behind.
__device__ inline void fetch_row(const SelectArgs& args, int32_t block, int position) {
  const int kv_head = static_cast<int>(blockIdx.y) * args.kv_heads / args.units, bytes = args.row_bytes;
  const int64_t tile = static_cast<int64_t>(block) * args.kv_heads + kv_head;
  const char* const from =
      reinterpret_cast<const char*>(args.kv) + tile * args.tile_stride + position % kBlockTokens * bytes;
#pragma unroll 1
  for (int i = 0; i < bytes; i += 128) prefetch(from + i);
}

/// Of four neighbours in a slice, which are certain to be taken and which share the last place, as bits. What is
/// reserved is unranked, and so at no distance.
struct TakenBits {
  uint32_t above = 0, equal = 0;

  /// at: of the first, in the slice.
  __device__ TakenBits(const RowPolicy& policy, const SetSlice& slice, const Search& search, bool ranks,
                       const uint32_t* distances, int at) {
    if (at >= slice.end - slice.begin) return;
    const int position = slice.begin + at;
    if (ranks) {
      const uint4 four = *reinterpret_cast<const uint4*>(distances + at);
      const uint32_t own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        above |= static_cast<uint32_t>(own[j] < search.base) << j;
        equal |= static_cast<uint32_t>(search.shares(own[j])) << j;
      }
    }
    if (position >= policy.first && position + 4 <= policy.last) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool reserved = position + j < policy.first || position + j >= policy.last;
      above |= static_cast<uint32_t>(reserved && position + j < slice.end) << j;
    }
  }
};

/// Writes what is selected of the slice, in order. `ranks`: whether any but the reserved positions are. Calls
/// taken(place in the set, position) for each.
template <int kThreads, typename Taken>
__device__ inline void write_slice(const RowPolicy& policy, const SetSlice& slice, const Search& search, bool ranks,
                                   const SelectMemory& memory, int32_t* positions, Taken taken) {
  constexpr uint32_t kEqual = 0x80000000u;
  SelectShared& shared = memory.shared;
  const int length = slice.end - slice.begin;
  // Of the equal ones the first `wanted` of all blocks.
  const uint32_t taken_before = min(search.sharing_before, search.wanted), left = search.wanted - taken_before;
  const uint32_t first_place =
      min(policy.first, slice.begin) + max(0, slice.begin - policy.last) + search.above_before + taken_before;
  // `before`: of the slice and before `at`, those above in the lower half, equal ones in the upper.
  const auto write = [&](int at, bool equal, uint32_t before) {
    if (equal && before >> 16 >= left) return;
    const uint32_t place = first_place + (before & 0xffffu) + min(before >> 16, left);
    positions[place] = slice.begin + at;
    taken(static_cast<int>(place), slice.begin + at);
  };

  // Of a long slice few are taken, mostly: these are listed, and put in order by comparing each with each.
  const bool lists = length > kSelectPiece<kThreads>;
#pragma unroll 1
  for (int at = 4 * static_cast<int>(threadIdx.x); lists && at < length; at += kSelectPiece<kThreads>) {
    const TakenBits bits(policy, slice, search, ranks, memory.distances, at);
#pragma unroll 1
    for (uint32_t rest = bits.above | bits.equal; rest != 0; rest &= rest - 1) {
      const uint32_t place = atomicAdd(&shared.listed_count, 1u), j = __ffs(rest) - 1;
      if (place < kMostListed) shared.listed[place] = (at + j) | ((bits.above >> j & 1) != 0 ? 0 : kEqual);
    }
  }
  __syncthreads();
  const uint32_t count = shared.listed_count;
  if (lists && count <= kMostListed) {
    if (threadIdx.x >= count) return;
    const uint32_t own = shared.listed[threadIdx.x], at = own & ~kEqual;
    uint32_t before = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t other = shared.listed[i];
      if ((other & ~kEqual) < at) before += (other & kEqual) != 0 ? 1u << 16 : 1u;
    }
    return write(static_cast<int>(at), (own & kEqual) != 0, before);
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t before = 0;  // of the pieces before
#pragma unroll 1
  for (int begin = 0, turn = 0; begin < length; begin += kSelectPiece<kThreads>, turn ^= 1) {
    const int at = begin + 4 * static_cast<int>(threadIdx.x);
    const TakenBits bits(policy, slice, search, ranks, memory.distances, at);
    const uint32_t own = __popc(bits.above) | __popc(bits.equal) << 16, up_to = sum_up_to_lane(own);
    uint32_t* const sums = shared.warp_sums[turn];
    if (lane == 31) sums[warp] = up_to;
    __syncthreads();
    uint32_t own_before = before + up_to - own;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) {
      own_before += w < warp ? sums[w] : 0;
      before += sums[w];
    }
#pragma unroll 1
    for (uint32_t rest = bits.above | bits.equal; rest != 0; rest &= rest - 1) {
      const bool shares = (bits.equal & rest & -rest) != 0;
      write(at + __ffs(rest) - 1, shares, own_before);
      own_before += shares ? 1u << 16 : 1u;
    }
  }
}

}  // namespace tidal::cuda
