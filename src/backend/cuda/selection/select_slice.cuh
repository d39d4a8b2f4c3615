// What a block of a selecting cluster keeps of its slice of the positions, and how that comes to be.
#pragma once

#include "backend/cuda/selection/cluster_search.cuh"
#include "backend/cuda/selection/select_pool.cuh"

namespace tidal::cuda {

/// Of a block: so many, or twice as many where a slice is long, so that more of its scores are on their way at once.
inline constexpr int kSelectThreads = 512, kMostSelectThreads = 1024;
/// Positions of a block at a time.
template <int kThreads>
inline constexpr int kSelectPiece = 4 * kThreads;
inline constexpr int kLeastSlice = 512;            // so short contexts take fewer blocks
inline constexpr uint32_t kHighest = 0xff800000u;  // key of infinity
inline constexpr uint32_t kUnranked = kFarthest + 1;
/// Probabilities are powers of two with an error of two units in the last place: a bound on them needs some room.
inline constexpr uint32_t kBoundRoom = 64;
/// First digit below a known bound: 8 bins to a power of two, 32 powers of two down.
inline constexpr int kBoundedShift = 20;
/// Digits at most: the first, where it ends in the last bin one of whatever is left, and three more.
inline constexpr int kSelectDigits = 5;

/// So many that are selected of a slice are put in order by comparing each with each.
inline constexpr int kMostListed = kSelectThreads;

struct alignas(16) SelectShared {
  uint32_t counts[kSelectDigits][kDigitBins];
  uint64_t arrivals[kSelectDigits];  // barriers of the histograms of all blocks
  uint32_t mass_counts[kDigitBins];
  unsigned long long masses[kDigitBins];
  unsigned long long mass, reserved_mass;  // of the slice
  BinSearch search;
  uint32_t listed[kMostListed], listed_count;
  uint32_t warp_sums[2][kMostSelectThreads / 32];  // of two pieces in turn
  float sums[kShareThreads / 32];
};

/// Positions of a slice where `blocks` have `context`: whole blocks of the cache.
__host__ __device__ constexpr int slice_length(int context, int blocks) {
  const int even = ((context + blocks - 1) / blocks + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  return even > kLeastSlice ? even : kLeastSlice;
}

/// Histograms of the digits from all blocks come to two places in turn: nobody sends the next but one before all have
/// sent the next, having read this one.
inline constexpr int kPlaces = 2;

/// Shared memory of a block, but for the distances of its slice, which lie behind it.
__host__ __device__ constexpr size_t select_fixed_bytes(int blocks, int slice, int heads) {
  const size_t words = kPlaces * blocks * kDigitBins + slice / kBlockTokens + 2;
  return (sizeof(SelectShared) + words * sizeof(uint32_t) + heads * sizeof(HeadShare) + 15) / 16 * 16;
}
__host__ __device__ constexpr size_t select_shared_bytes(int blocks, int slice, int heads) {
  return select_fixed_bytes(blocks, slice, heads) + slice * sizeof(uint32_t);
}

/// rank_key() of what pool_four() gives: sums of probabilities are numbers, and not negative.
template <Ranking kRanking>
__device__ inline uint32_t key_of(float ranking) {
  return kRanking == Ranking::Sum ? __float_as_uint(ranking) | 0x80000000u : rank_key(ranking);
}

/// What a block works on.
struct SetSlice {
  int begin, end;  // positions
  int blocks;      // of the cluster that have positions
  int rank;        // of this one
};

/// The block's memory. Distances are those of the slice's positions, to the next multiple of 4.
struct SelectMemory {
  SelectShared& shared;
  uint32_t* received;   // [kPlaces, blocks of the cluster, kDigitBins]
  HeadShare* shares;    // [heads of a set]
  uint32_t* distances;  // [slice]
  int32_t* table;       // [slice / kBlockTokens + 2], the blocks
};

/// Calls use(distance, index in the slice) for the positions of the slice that are no farther than `span` from `base`
/// behind it. Few, mostly.
template <int kThreads, typename Use>
__device__ inline void for_within(const SetSlice& slice, const uint32_t* distances, uint32_t base, uint32_t span,
                                  Use use) {
#pragma unroll 1
  for (int i = 4 * static_cast<int>(threadIdx.x); i < slice.end - slice.begin; i += kSelectPiece<kThreads>) {
    const uint4 four = *reinterpret_cast<const uint4*>(distances + i);
    const uint32_t from[4] = {four.x - base, four.y - base, four.z - base, four.w - base};
    if (min(min(from[0], from[1]), min(from[2], from[3])) > span) continue;
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      const uint32_t own = j == 0 ? from[0] : j == 1 ? from[1] : j == 2 ? from[2] : from[3];
      if (own <= span) use(base + own, i + j);
    }
  }
}

/// The shares of the set's heads, and the key from which distances are, above which no position ranks. scores: of the
/// first head, which is first_head of the run. All threads call it.
template <Ranking kRanking, int kThreads>
__device__ inline uint32_t find_shares(const SelectArgs& args, const RowPolicy& policy, int64_t first_head,
                                       const float* scores, const SelectMemory& memory) {
  const int heads = args.heads / args.units;
  const bool shares = kRanking == Ranking::Sum || (kRanking == Ranking::Raw && policy.top_p < 1);
  bool odd = false;
#pragma unroll 1
  for (int h = static_cast<int>(threadIdx.x) / 32; h < heads; h += kThreads / 32) {
    const SoftmaxPart of = statistics_of(args, first_head + h);
    odd = odd || (shares && !(is_finite(of.maximum) && is_finite(of.sum)));
    if (threadIdx.x % 32 == 0) memory.shares[h] = {of.maximum, __fdiv_rn(1.0f, of.sum)};
  }
  if (__syncthreads_or(odd)) {
#pragma unroll 1
    for (int h = 0; h < heads; ++h) {
      const HeadShare share = head_share(statistics_of(args, first_head + h), scores + h * args.score_stride,
                                         policy.context, args.scale, memory.shared.sums);
      if (threadIdx.x == 0) memory.shares[h] = share;
    }
    __syncthreads();
  }
  float bound = kRanking == Ranking::Sum ? 0.0f : negative_infinity();
#pragma unroll 1
  for (int h = 0; h < heads; ++h) {
    const HeadShare of = memory.shares[h];
    bound = kRanking == Ranking::Sum ? __fmaf_rn(0x1p64f, of.factor, bound) : fmaxf(bound, of.maximum);
  }
  if (kRanking == Ranking::Sum) bound = __fmul_rn(bound, 0x1p-64f);
  return min(rank_key(bound) + kBoundRoom, kHighest);
}

/// Pools the slice and makes the histogram of the first digit. Returns the key from which distances are.
template <Ranking kRanking, int kThreads>
__device__ inline uint32_t pool_slice(const SelectArgs& args, const RowPolicy& policy, const SetSlice& slice,
                                      const Search& search, const SelectMemory& memory) {
  SelectShared& shared = memory.shared;
  const int heads = args.heads / args.units;
  const bool weighs = policy.top_p < 1;
  const int64_t first_head = static_cast<int64_t>(blockIdx.z) * args.heads + blockIdx.y * heads;
  const float* const scores = args.scores + first_head * args.score_stride;
  int at = slice.begin + 4 * static_cast<int>(threadIdx.x);
  float4 next = {};
  if (at < slice.end) next = load4(scores + at);
  const uint32_t top = find_shares<kRanking, kThreads>(args, policy, first_head, scores, memory);
  unsigned long long mass = 0, reserved = 0;
  uint32_t last_bin = 0;  // most are far from the top: one count for them all
  for (; at < slice.end; at += kSelectPiece<kThreads>) {
    const float4 first = next;
    if (at + kSelectPiece<kThreads> < slice.end) next = load4(scores + at + kSelectPiece<kThreads>);
    float ranking[4];
    pool_four<kRanking>(args, first, scores + at, heads, memory.shares, ranking);
    uint32_t distances[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) distances[j] = top - key_of<kRanking>(ranking[j]);
    if (at < policy.first || at + 4 > policy.last) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (at + j < policy.first || at + j >= policy.last) distances[j] = kUnranked;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (distances[j] == kUnranked) continue;
      const uint32_t bin = search.bin_of(distances[j]);
      if (bin == kDigitBins - 1) {
        ++last_bin;
      } else {
        atomicAdd(&shared.counts[0][bin], 1u);
      }
    }
    if (weighs) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (at + j >= slice.end) break;
        const unsigned long long own = mass_of(share_of<kRanking>(ranking[j], memory.shares, args.scale));
        mass += own;
        if (distances[j] == kUnranked) reserved += own;
      }
    }
    *reinterpret_cast<uint4*>(memory.distances + at - slice.begin) = {distances[0], distances[1], distances[2],
                                                                      distances[3]};
  }
  last_bin = __reduce_add_sync(0xffffffffu, last_bin);
  if (threadIdx.x % 32 == 0 && last_bin > 0) atomicAdd(&shared.counts[0][kDigitBins - 1], last_bin);
  if (weighs) {
    mass = sum_over_warp(mass), reserved = sum_over_warp(reserved);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(&shared.mass, mass);
      atomicAdd(&shared.reserved_mass, reserved);
    }
  }
  return top;
}

}  // namespace tidal::cuda
