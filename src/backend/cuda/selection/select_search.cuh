// Where a set ends: by how many are wanted, then by the mass that they hold.
#pragma once

#include "backend/cuda/selection/select_slice.cuh"

namespace tidal::cuda {

/// Sends the histogram of a digit to all blocks, each beginning with itself.
template <int kThreads>
__device__ inline void send_counts(const SetSlice& slice, int digit, const SelectMemory& memory) {
  constexpr int kQuads = kDigitBins / 4;
  uint32_t* const place = memory.received + (digit % kPlaces * static_cast<int>(gridDim.x) + slice.rank) * kDigitBins;
#pragma unroll 1
  for (int i = threadIdx.x; i < slice.blocks * kQuads; i += kThreads) {
    const int quad = i % kQuads, to = slice.rank + i / kQuads;
    send(place + 4 * quad, &memory.shared.arrivals[digit],
         *reinterpret_cast<const uint4*>(&memory.shared.counts[digit][4 * quad]),
         to < slice.blocks ? to : to - slice.blocks);
  }
}

/// The `wanted` highest ranks.
template <int kThreads>
__device__ inline void search_count(const SetSlice& slice, Search& search, const SelectMemory& memory) {
  SelectShared& shared = memory.shared;
  for (int digit = 0; digit < kSelectDigits; ++digit) {
    if (digit > 0) {
      for_within<kThreads>(slice, memory.distances, search.base, search.span, [&](uint32_t distance, int) {
        atomicAdd(&shared.counts[digit][search.bin_of(distance)], 1u);
      });
    }
    __syncthreads();
    send_counts<kThreads>(slice, digit, memory);
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
template <Ranking kRanking, int kThreads>
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
    for_within<kThreads>(slice, memory.distances, shorter.base, shorter.span, [&](uint32_t distance, int) {
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

}  // namespace tidal::cuda
