// What the row cache knows of the rows that it holds, and which of them gives way: numbers that host and device make
// alike.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tidal::cuda {

/// A row that is held, in 64 bits, so that one atomic operation looks it up and claims it; 0: none is.
///   bits 0 to 5    the offset of its position in the block
///   bits 6 to 37   the generation of that (StepTables::generations), which says what block it is, too
///   bits 38 to 63  the stamp: the number of the step that used it last, modulo 2^26
using RowTag = unsigned long long;

/// Rows that a set has room for; a row has its place in one set. Their tags are 64 bytes, two sectors of a line.
inline constexpr int kWays = 8;
inline constexpr int kOffsetBits = 6, kRowBits = 32 + kOffsetBits;
inline constexpr uint32_t kStampMask = (1u << (64 - kRowBits)) - 1;

/// The tag without a stamp. `generation` is not 0.
__host__ __device__ inline RowTag row_tag(uint32_t generation, int offset) {
  return static_cast<RowTag>(generation) << kOffsetBits | static_cast<RowTag>(offset);
}
__host__ __device__ inline RowTag stamped(RowTag row, uint32_t step) {
  return row | static_cast<RowTag>(step & kStampMask) << kRowBits;
}

/// The set of a row. Neighbouring positions scatter.
__host__ __device__ inline uint32_t row_set(RowTag row, uint32_t sets) {
  RowTag x = row;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((x >> 32) * sets >> 32);
}

/// How a way suits a row (without a stamp): the highest is taken. Below kEmptyWay it is the number of steps since the
/// way was used.
inline constexpr uint32_t kUsedWay = 0;  ///< at this step, for another row: not to be taken
inline constexpr uint32_t kEmptyWay = kStampMask + 1;
inline constexpr uint32_t kHoldingWay = kEmptyWay + 1;  ///< it has the row
__host__ __device__ inline uint32_t way_rank(RowTag way, RowTag row, uint32_t step) {
  if (way == 0) return kEmptyWay;
  if (((way ^ row) & ((RowTag{1} << kRowBits) - 1)) == 0) return kHoldingWay;
  // A way last used 2^26 steps ago counts as used now: it stays for one step more, which costs nothing but room.
  return (step - static_cast<uint32_t>(way >> kRowBits)) & kStampMask;
}

}  // namespace tidal::cuda
