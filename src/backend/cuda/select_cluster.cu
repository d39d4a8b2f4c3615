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
#include <string>

#include "backend/cuda/cluster_search.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/select_pool.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kPiece = 4 * kThreads;        // positions of a block at a time
constexpr int kLeastSlice = 512;            // so short contexts take fewer blocks
constexpr uint32_t kHighest = 0xff800000u;  // key of infinity
constexpr uint32_t kUnranked = kFarthest + 1;
/// Probabilities are powers of two with an error of two units in the last place: a bound on them needs some room.
constexpr uint32_t kBoundRoom = 64;
/// First digit below a known bound: 8 bins to a power of two, 32 powers of two down.
constexpr int kBoundedShift = 20;
/// Digits at most: the first, where it ends in the last bin one of whatever is left, and three more.
constexpr int kDigits = 5;

struct alignas(16) Shared {
  uint32_t counts[kDigits][kDigitBins];
  uint64_t arrivals[kDigits];  // barriers of the histograms of all blocks
  uint32_t mass_counts[kDigitBins];
  unsigned long long masses[kDigitBins];
  unsigned long long mass, reserved_mass;  // of the slice
  BinSearch search;
  uint32_t warp_sums[kWarps];
  float sums[kShareThreads / 32];
};

/// Positions of a slice where `blocks` have `context`.
__host__ __device__ constexpr int slice_length(int context, int blocks) {
  const int even = ((context + blocks - 1) / blocks + 31) / 32 * 32;
  return even > kLeastSlice ? even : kLeastSlice;
}

/// Histograms of the digits from all blocks come to two places in turn: nobody sends the next but one before all have
/// sent the next, having read this one.
constexpr int kPlaces = 2;

size_t shared_bytes(int blocks, int slice, int heads) {
  const size_t words = kPlaces * blocks * kDigitBins + slice + 2 * (slice / 32) + slice / kBlockTokens + 2;
  return sizeof(Shared) + words * sizeof(uint32_t) + heads * sizeof(HeadShare);
}

/// rank_key() of what pool_four() gives: sums of probabilities are numbers, and not negative.
template <Ranking kRanking>
__device__ uint32_t key_of(float ranking) {
  return kRanking == Ranking::Sum ? __float_as_uint(ranking) | 0x80000000u : rank_key(ranking);
}

/// The float whose rank_key() this is.
__device__ float score_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

__device__ unsigned long long sum_over_warp(unsigned long long value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

/// Sum of `value` over the threads before this one. All threads call it.
__device__ uint32_t sum_before(uint32_t value, uint32_t* warp_sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t sum = value;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffffu, sum, apart);
    if (lane >= apart) sum += other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  uint32_t before = sum - value;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) before += w < warp ? warp_sums[w] : 0;
  return before;
}

/// What a block works on.
struct Slice {
  int begin, end;  // positions
  int blocks;      // of the cluster that have positions
  int rank;        // of this one
};

/// The block's memory. Distances are those of the slice's positions, to the next multiple of 4.
struct Memory {
  Shared& shared;
  uint32_t* received;   // [kPlaces, blocks of the cluster, kDigitBins]
  HeadShare* shares;    // [heads of a set]
  uint32_t* distances;  // [slice]
  uint32_t* above;      // [slice / 32], bits
  uint32_t* equal;      // the same
  int32_t* table;       // [slice / kBlockTokens + 2], the blocks
};

/// Calls use(distance, index in the slice) for the positions of the slice that are no farther than `span` from `base`
/// behind it. Few, mostly.
template <typename Use>
__device__ void for_within(const Slice& slice, const uint32_t* distances, uint32_t base, uint32_t span, Use use) {
#pragma unroll 1
  for (int i = 4 * threadIdx.x; i < slice.end - slice.begin; i += kPiece) {
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

/// Pools the slice and makes the histogram of the first digit. Returns the key from which distances are.
template <Ranking kRanking>
__device__ uint32_t pool_slice(const SelectArgs& args, const RowPolicy& policy, const Slice& slice, Search& search,
                               const Memory& memory) {
  Shared& shared = memory.shared;
  const int heads = args.heads / args.units;
  const bool weighs = policy.top_p < 1;
  const int64_t first_head = static_cast<int64_t>(blockIdx.z) * args.heads + blockIdx.y * heads;
  const float* const scores = args.scores + first_head * args.score_stride;
  int at = slice.begin + 4 * static_cast<int>(threadIdx.x);
  float4 next = {};
  if (at < slice.end) next = load4(scores + at);
  // Scan layers have statistics only where probabilities are needed.
  const bool shares = kRanking == Ranking::Sum || (kRanking == Ranking::Raw && weighs);
  const bool bounded = kRanking == Ranking::Sum || !args.scan || weighs;
  uint32_t top = kHighest;
  if (bounded) {
    bool odd = false;
#pragma unroll 1
    for (int h = threadIdx.x; h < heads; h += kThreads) {
      const SoftmaxPart whole = args.statistics[first_head + h];
      odd = odd || (shares && !(is_finite(whole.maximum) && is_finite(whole.sum)));
      memory.shares[h] = {whole.maximum, __fdiv_rn(1.0f, whole.sum)};
    }
    if (__syncthreads_or(odd)) {
#pragma unroll 1
      for (int h = 0; h < heads; ++h) {
        const HeadShare share = head_share(args.statistics[first_head + h], scores + h * args.score_stride,
                                           policy.context, args.scale, shared.sums);
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
    top = min(rank_key(bound) + kBoundRoom, kHighest);
    search.shift = kBoundedShift;
  }
  unsigned long long mass = 0, reserved = 0;
  for (; at < slice.end; at += kPiece) {
    const float4 first = next;
    if (at + kPiece < slice.end) next = load4(scores + at + kPiece);
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
      if (distances[j] != kUnranked) atomicAdd(&shared.counts[0][search.bin_of(distances[j])], 1u);
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
  if (weighs) {
    mass = sum_over_warp(mass), reserved = sum_over_warp(reserved);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(&shared.mass, mass);
      atomicAdd(&shared.reserved_mass, reserved);
    }
  }
  return top;
}

/// Sends the histogram of a digit to all blocks, each beginning with itself.
__device__ void send_counts(const Slice& slice, int digit, const Memory& memory) {
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
__device__ void search_count(const Slice& slice, Search& search, const Memory& memory) {
  Shared& shared = memory.shared;
  for (int digit = 0; digit < kDigits; ++digit) {
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
__device__ __noinline__ Search search_mass(float scale, float top_p, Slice slice, uint32_t top, Search search,
                                           Memory memory) {
  Shared& shared = memory.shared;
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

/// Has the keys and values of a position on their way to the L2, for the attention behind.
__device__ void fetch_row(const SelectArgs& args, int32_t block, int position) {
  const int kv_head = static_cast<int>(blockIdx.y) * args.kv_heads / args.units, bytes = 4 * args.head_dim;
  const int64_t tile = static_cast<int64_t>(block) * args.kv_heads + kv_head;
  const char* const from =
      reinterpret_cast<const char*>(args.kv) + (tile * kBlockTokens + position % kBlockTokens) * bytes;
#pragma unroll 1
  for (int i = 0; i < bytes; i += 128) prefetch(from + i);
}

/// The bits of positions [begin, end) in a word whose first position is 0; either may lie outside of it.
__device__ uint32_t bits_between(int begin, int end) {
  const auto below = [](int position) {
    return position <= 0 ? 0u : position >= 32 ? 0xffffffffu : (1u << position) - 1;
  };
  return below(end) & ~below(begin);
}

/// Writes what is selected of the slice, in order. `ranks`: whether any but the reserved positions are.
__device__ void write_slice(const SelectArgs& args, const RowPolicy& policy, const Slice& slice, const Search& search,
                            bool ranks, const Memory& memory, int32_t* positions) {
  const int words = (slice.end - slice.begin + 31) / 32;
  if (ranks) {
    for_within(slice, memory.distances, 0, search.base + search.span, [&](uint32_t distance, int i) {
      atomicOr((distance < search.base ? memory.above : memory.equal) + i / 32, 1u << i % 32);
    });
  }
  __syncthreads();
  const int own = (words + kThreads - 1) / kThreads;
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
  for (int group = 0; group < words; group += kThreads) {
    const int own_word = group + warp + kWarps * lane;
    const bool inside = own_word < words;
    const uint32_t own_taken = inside ? memory.above[own_word] : 0, own_at = inside ? memory.equal[own_word] : 0;
#pragma unroll 1
    for (uint32_t rest = __ballot_sync(0xffffffffu, own_taken != 0); rest != 0; rest &= rest - 1) {
      const int from = __ffs(rest) - 1;
      const uint32_t taken = __shfl_sync(0xffffffffu, own_taken, from);
      const uint32_t first = __shfl_sync(0xffffffffu, own_at, from);
      if ((taken >> lane & 1) == 0) continue;
      const int position = slice.begin + 32 * (group + warp + kWarps * from) + lane;
      positions[first + __popc(taken & ((1u << lane) - 1))] = position;
      if (args.kv) fetch_row(args, memory.table[position / kBlockTokens - slice.begin / kBlockTokens], position);
    }
  }
}

/// Grid (blocks of a cluster, sets, rows).
template <Ranking kRanking>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    select_kernel(const __grid_constant__ SelectArgs args, int slice_room) {
  extern __shared__ __align__(16) char bytes[];
  const int unit = blockIdx.y, row = args.first_row + static_cast<int>(blockIdx.z);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  auto* const received = reinterpret_cast<uint32_t*>(bytes + sizeof(Shared));
  uint32_t* const distances = received + kPlaces * gridDim.x * kDigitBins;
  uint32_t* const above = distances + slice_room;
  uint32_t* const equal = above + slice_room / 32;
  auto* const shares = reinterpret_cast<HeadShare*>(equal + slice_room / 32);
  auto* const table = reinterpret_cast<int32_t*>(shares + args.heads / args.units);
  const Memory memory{shared, received, shares, distances, above, equal, table};
  const RowPolicy policy = row_policy(args.tables, row, args.scan);
  const int length = slice_length(policy.context, gridDim.x);
  Slice slice;
  slice.rank = blockIdx.x;
  slice.blocks = (policy.context + length - 1) / length;
  slice.begin = slice.rank * length;
  slice.end = min(policy.context, slice.begin + length);
  const bool ranks = policy.wanted > 0, weighs = policy.top_p < 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < kDigits * kDigitBins; i += kThreads) (&shared.counts[0][0])[i] = 0;
  const int marks = 2 * (slice_room / 32);
#pragma unroll 1
  for (int i = threadIdx.x; i < marks; i += kThreads) above[i] = 0;  // and those of `equal`
  if (threadIdx.x == 0) shared.mass = shared.reserved_mass = 0;
  if (args.kv) {
    const int32_t* const blocks = row_of(args.tables, row).table + slice.begin / kBlockTokens;
    const int count = (slice.end + kBlockTokens - 1) / kBlockTokens - slice.begin / kBlockTokens;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) table[i] = blocks[i];
  }
  if (threadIdx.x < kDigits) expect_bytes(&shared.arrivals[threadIdx.x], slice.blocks * kDigitBins * sizeof(uint32_t));
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
    config.blockDim = dim3(kThreads);
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
    for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
      const size_t bytes = shared_bytes(blocks, slice_length(max_context, blocks), heads);
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
  for (int blocks = 1; blocks <= kMostBlocks; ++blocks) {
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
  const ClusterLaunch launch(blocks, args.units, args.run, shared_bytes(blocks, slice, args.heads / args.units),
                             stream);
  check(cudaLaunchKernelEx(&launch.config, kernel_for(ranking_of(args)), args, slice), kWhat);
}

}  // namespace tidal::cuda
