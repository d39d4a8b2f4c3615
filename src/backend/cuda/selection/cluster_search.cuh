// Where a set ends, found by the blocks of a cluster together: digit by digit from histograms that each makes of its
// own positions and all read.
#pragma once

#include "backend/cuda/selection/cluster_device.cuh"
#include "backend/cuda/selection/warp_sums.cuh"

namespace tidal::cuda {

inline constexpr int kDigitBits = 8;
inline constexpr int kDigitBins = 1 << kDigitBits;
inline constexpr uint32_t kFarthest = 0xfffffffeu;  ///< of what is ranked; what is not has one more

/// What is known of the last position taken. Positions are at a distance from the top: the smaller, the higher they
/// rank. Nearer than `base` all are taken, of those up to `base + span` so many as `wanted`.
struct Search {
  uint32_t base = 0;
  uint32_t span = kFarthest;
  int shift = 32 - kDigitBits;  ///< of the next digit; what is too far for its bins goes into the last one
  uint32_t wanted = 0;
  uint32_t above = 0;            ///< taken for certain, in all blocks
  uint32_t above_before = 0;     ///< of them in the blocks before this one
  uint32_t sharing_before = 0;   ///< of those from `base` on in the blocks before
  uint32_t sharing = kFarthest;  ///< of those from `base` on in all

  __device__ bool shares(uint32_t distance) const { return distance - base <= span; }
  __device__ uint32_t bin_of(uint32_t distance) const {
    return min((distance - base) >> shift, static_cast<uint32_t>(kDigitBins - 1));
  }
  /// To what is in one bin.
  __device__ void enter(uint32_t bin) {
    base += bin << shift;
    span -= bin << shift;
    if (bin < kDigitBins - 1) span = min(span, (1u << shift) - 1);
    begin_digit();
  }
  __device__ void begin_digit() { shift = max(0, 32 - __clz(span) - kDigitBits); }
};

/// Shared memory of find_bin().
struct BinSearch {
  unsigned long long warp_counts[kDigitBins / 32];
  unsigned long long warp_mass[kDigitBins / 32];
  uint32_t bin;
  uint32_t above, above_before, sharing, sharing_before;
  unsigned long long mass;
};

/// What one bin holds.
struct Bin {
  uint32_t count = 0;         ///< in all blocks
  uint32_t count_before = 0;  ///< in the blocks before this one
  unsigned long long mass = 0;
};

/// One digit: the first bin, from the highest ranks, where `ends` says so of the count and the mass before it and with
/// it; without kByMass of the count alone. False where it never does. gather(i): bin i, for threads below kDigitBins;
/// `mass` of what is above gets more by what is above that bin. All threads call it.
template <bool kByMass, typename Gather, typename Ends>
__device__ inline bool find_bin(BinSearch& shared, Search& search, unsigned long long& mass, Gather gather, Ends ends) {
  constexpr uint32_t kNone = kDigitBins;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  Bin own;
  unsigned long long up_to = 0, mass_up_to = 0;  // counts: of all blocks below, of those before above
  if (thread < kDigitBins) {
    if (thread == 0) shared.bin = kNone;
    own = gather(thread);
    up_to = sum_up_to_lane(static_cast<unsigned long long>(own.count_before) << 32 | own.count);
    if constexpr (kByMass) mass_up_to = sum_up_to_lane(own.mass);
    if (lane == 31) shared.warp_counts[warp] = up_to;
    if (kByMass && lane == 31) shared.warp_mass[warp] = mass_up_to;
  }
  __syncthreads();
  if (thread < kDigitBins) {
#pragma unroll
    for (int w = 0; w < kDigitBins / 32; ++w) {
      if (w < warp) up_to += shared.warp_counts[w];
      if (kByMass && w < warp) mass_up_to += shared.warp_mass[w];
    }
    const uint32_t with = static_cast<uint32_t>(up_to), before = with - own.count;
    if (!ends(before, mass_up_to - own.mass) && ends(with, mass_up_to)) {
      shared.bin = thread;
      shared.above = before;
      shared.above_before = static_cast<uint32_t>(up_to >> 32) - own.count_before;
      shared.sharing = own.count;
      shared.sharing_before = own.count_before;
      if (kByMass) shared.mass = mass_up_to - own.mass;
    }
  }
  __syncthreads();
  if (shared.bin == kNone) return false;
  search.enter(shared.bin);
  search.above += shared.above;
  search.above_before += shared.above_before;
  search.sharing = shared.sharing;
  search.sharing_before = shared.sharing_before;
  if (kByMass) mass += shared.mass;
  return true;
}

}  // namespace tidal::cuda
