// Where the rows of a context or of a selection are, and how a warp has a slice of them come to shared memory.
#pragma once

#include "backend/cuda/attention/attend_merge.cuh"

namespace tidal::cuda {

/// Where the rows of a piece are. Looking one up takes two steps, each with a load that must not be waited for at once;
/// of resolved rows the second has none.
template <bool kSelected>
struct RowFinder {
  const int32_t* table;
  const int32_t* selected;  // of the piece
  int begin;                // position of the piece
  int count;                // positions in the piece
  int kv_head, kv_heads;
  int row_bytes;
  int64_t tile_stride;
  bool resolved;   // `selected` has AttendRowsArgs::resolved
  int64_t cached;  // byte of the first cached row, from the layer's first

  /// Of the whole context: the first position of a slice. Of a selection: the one that this lane looks up.
  __device__ int position(int slice) const {
    if constexpr (!kSelected) return begin + slice * kSlice;
    const int index = slice * kSlice + static_cast<int>(threadIdx.x % kSlice);
    return index < count ? selected[index] : -1;
  }
  /// Byte of its row from the layer's first; any row's where there is no position.
  __device__ int64_t row(int position) const {
    if (kSelected && resolved) {
      return position >= 0 ? static_cast<int64_t>(position) * row_bytes
                           : cached + static_cast<int64_t>(~position) * row_bytes;
    }
    const int at = kSelected ? max(position, 0) : position;
    const int64_t tile = static_cast<int64_t>(table[at / kBlockTokens]) * kv_heads + kv_head;
    return tile * tile_stride + at % kBlockTokens * row_bytes;
  }
};

template <bool kSelected>
__device__ inline RowFinder<kSelected> row_finder(const AttendRowsArgs& args, const AttendTask& task,
                                                  const int32_t* table, const int32_t* selected, int row_bytes) {
  const int kv_heads = args.tiles.kv_heads;
  return {table,
          selected,
          task.begin,
          task.count,
          task.first_head / (args.tiles.heads / kv_heads),
          kv_heads,
          row_bytes,
          args.tile_stride,
          args.resolved != nullptr,
          args.cached - args.kv};
}

/// Rows [first, valid) of a slice, zeros in place of the others.
template <int kDim, KvType kType, bool kSelected, bool kOnce>
__device__ inline void copy_slice(uint32_t to, const std::byte* kv, int64_t row, int first, int valid) {
  using Sizes = AttendSizes<kDim, kType>;
  constexpr int kUnits = Sizes::kRowBytes / 16;  // of 16 bytes, in a row
  constexpr int kAll = kSlice * kUnits;
  const int lane = threadIdx.x % 32;
  const auto* base = reinterpret_cast<const char*>(kv);
#pragma unroll
  for (int i = 0; i < (kAll + 31) / 32; ++i) {
    const int unit = i * 32 + lane, r = unit / kUnits, at = unit % kUnits;
    const int64_t from = kSelected ? __shfl_sync(0xffffffffu, row, r % kSlice) : row + r * Sizes::kRowBytes;
    if (kAll % 32 != 0 && unit >= kAll) continue;
    copy_async<kOnce>(to + r * Sizes::kStride + at * 16, base + from + at * 16, r >= first && r < valid);
  }
}

}  // namespace tidal::cuda
