// Exact top-k of one set by one CTA: the highest ranks, ties to the lower position, written in ascending order.
//
// Positions are told apart by 64 bits: the key of their rank above, the complement of the position below, so that no
// two are equal. The digits of the last one taken are found from the top, 11 bits at a time, each by a histogram: the
// first one comes with the scores (select_pool.cu); then the positions that share the digits found so far are few
// enough to be listed in shared memory, and the search goes on there. Where they are not (many equal scores), it goes
// on over all positions until they are. What is taken is marked in a bitmap, whose order is that of the positions.
#include <string>

#include "backend/cuda/selection/select_pool.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kMostListed = 4096;

/// First bit of every digit; the key ends after the third.
__device__ constexpr int digit_shift(int digit) {
  constexpr int kShifts[] = {53, 42, 32, 21, 10, 0};
  return kShifts[digit];
}
constexpr int kDigits = 6;

struct Shared {
  uint64_t listed[kMostListed];
  uint32_t bins[kBins];
  uint32_t warp_sums[kWarps];
  unsigned long long warp_mass[kWarps];
  uint32_t listed_count;
  uint32_t bin, above;
};

__device__ uint64_t rank_of(float score, int position) {
  return static_cast<uint64_t>(rank_key(score)) << 32 | ~static_cast<uint32_t>(position);
}

/// Sum of `value` over the threads before this one; `total` of all. All threads call it.
__device__ uint32_t sum_before(uint32_t value, uint32_t* warp_sums, uint32_t& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t sum = sum_up_to_lane(value);
  __syncthreads();
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  const uint32_t own = sum_up_to_lane(warp_sums[lane]);
  total = __shfl_sync(0xffffffffu, own, 31);
  const uint32_t before = __shfl_sync(0xffffffffu, own, warp > 0 ? warp - 1 : 0);
  return sum - value + (warp > 0 ? before : 0);
}

/// What is known of the last position taken: its digits so far.
struct Search {
  int digit = 0;         // the next one to be found
  uint64_t prefix = 0;   // those found, at their place
  uint32_t wanted;       // positions still to be taken among those that share the prefix
  uint32_t sharing = 0;  // how many there are

  __device__ int shift() const { return digit == 0 ? 64 : digit_shift(digit - 1); }
  __device__ bool shares(uint64_t rank) const { return digit == 0 || (rank ^ prefix) >> shift() == 0; }
  __device__ bool above(uint64_t rank) const { return digit > 0 && rank >> shift() > prefix >> shift(); }
  /// All that share the prefix are taken.
  __device__ bool ends() const { return digit == kDigits || wanted == sharing; }
  __device__ uint32_t bin_of(uint64_t rank) const {
    return static_cast<uint32_t>(rank >> digit_shift(digit)) & ((1u << (shift() - digit_shift(digit))) - 1);
  }
};

/// Takes the next digit from the histogram in shared.bins, which is cleared. All threads call it.
__device__ void find_digit(Shared& shared, Search& search) {
  __syncthreads();
  // Thread i has the two bins 2i and 2i + 1 from the top.
  const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  const uint32_t first = shared.bins[high], second = shared.bins[high - 1];
  uint32_t total;
  const uint32_t before = sum_before(first + second, shared.warp_sums, total);
  if (before < search.wanted && search.wanted <= before + first + second) {
    const bool in_first = search.wanted <= before + first;
    shared.bin = in_first ? high : high - 1;
    shared.above = in_first ? before : before + first;
    shared.listed_count = in_first ? first : second;
  }
  shared.bins[high] = shared.bins[high - 1] = 0;
  __syncthreads();
  search.prefix |= static_cast<uint64_t>(shared.bin) << digit_shift(search.digit);
  ++search.digit;
  search.wanted -= shared.above;
  search.sharing = shared.listed_count;
  __syncthreads();
}

/// Calls use(score, position) for all positions that are ranked. `ranking` is aligned to 16 bytes and may be read up to
/// the next multiple of 4.
template <typename Use>
__device__ void for_ranked(const float* ranking, const RowPolicy& policy, Use use) {
  constexpr int kStep = 4 * kThreads;
#pragma unroll 4
  for (int begin = policy.first / 4 * 4; begin < policy.last; begin += kStep) {
    const int at = begin + 4 * static_cast<int>(threadIdx.x);
    if (at >= policy.last) continue;
    const float4 scores = *reinterpret_cast<const float4*>(ranking + at);
    if (at >= policy.first) use(scores.x, at);
    if (at + 1 >= policy.first && at + 1 < policy.last) use(scores.y, at + 1);
    if (at + 2 >= policy.first && at + 2 < policy.last) use(scores.z, at + 2);
    if (at + 3 >= policy.first && at + 3 < policy.last) use(scores.w, at + 3);
  }
}

__device__ void mark(uint32_t* bitmap, int position) { atomicOr(bitmap + position / 32, 1u << position % 32); }

/// Marks the `wanted` positions of the highest ranks.
__device__ void mark_highest(const float* ranking, const RowPolicy& policy, uint32_t* histogram, Shared& shared,
                             uint32_t* bitmap) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    shared.bins[i] = histogram[i];
    histogram[i] = 0;
  }
  Search search;
  search.wanted = policy.wanted;
  find_digit(shared, search);
  while (!search.ends() && search.sharing > kMostListed) {
    for_ranked(ranking, policy, [&](float score, int position) {
      const uint64_t rank = rank_of(score, position);
      if (search.shares(rank)) atomicAdd(&shared.bins[search.bin_of(rank)], 1u);
    });
    find_digit(shared, search);
  }
  const bool all = search.ends();
  if (threadIdx.x == 0) shared.listed_count = 0;
  __syncthreads();
  for_ranked(ranking, policy, [&](float score, int position) {
    const uint64_t rank = rank_of(score, position);
    const bool shares = search.shares(rank);
    if (search.above(rank) || (all && shares)) {
      mark(bitmap, position);
    } else if (shares) {
      shared.listed[atomicAdd(&shared.listed_count, 1u)] = rank;
    }
  });
  __syncthreads();
  if (all) return;
  const int listed = static_cast<int>(search.sharing);
  while (!search.ends()) {
    for (int i = threadIdx.x; i < listed; i += kThreads) {
      const uint64_t rank = shared.listed[i];
      if (search.shares(rank)) atomicAdd(&shared.bins[search.bin_of(rank)], 1u);
    }
    find_digit(shared, search);
  }
  for (int i = threadIdx.x; i < listed; i += kThreads) {
    const uint64_t rank = shared.listed[i];
    if (search.above(rank) || search.shares(rank)) mark(bitmap, static_cast<int>(~static_cast<uint32_t>(rank)));
  }
  __syncthreads();
}

/// Writes the marked positions in ascending order; returns how many. All threads call it.
__device__ int write_marked(const uint32_t* bitmap, int context, Shared& shared, int32_t* positions) {
  const int words = (context + 31) / 32, own = (words + kThreads - 1) / kThreads;
  const int begin = min(words, static_cast<int>(threadIdx.x) * own), end = min(words, begin + own);
  uint32_t count = 0, total;
  for (int i = begin; i < end; ++i) count += __popc(bitmap[i]);
  uint32_t at = sum_before(count, shared.warp_sums, total);
  for (int i = begin; i < end; ++i) {
    for (uint32_t left = bitmap[i]; left != 0; left &= left - 1) positions[at++] = 32 * i + __ffs(left) - 1;
  }
  return static_cast<int>(total);
}

/// Sum over all threads. All call it.
__device__ unsigned long long sum_mass(unsigned long long value, Shared& shared) {
  value = sum_over_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.warp_mass[threadIdx.x / 32] = value;
  __syncthreads();
  unsigned long long sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared.warp_mass[w];
  return sum;
}

/// Top-p: keeps of the `count` marked positions the reserved ones and by rank as few as hold `wanted` of the mass. What
/// goes loses its mark. The key of the last one kept is found bit by bit from the sums of the mass above.
__device__ void keep_mass(const float* ranking, const float* probabilities, const RowPolicy& policy, double wanted,
                          const int32_t* positions, int count, Shared& shared, uint32_t* bitmap) {
  const int first = policy.first, last = count - (policy.context - policy.last);  // of those chosen by rank
  unsigned long long own = 0;
  for (int i = threadIdx.x; i < policy.first; i += kThreads) own += mass_of(probabilities[i]);
  for (int i = policy.last + threadIdx.x; i < policy.context; i += kThreads) own += mass_of(probabilities[i]);
  const unsigned long long reserved = sum_mass(own, shared);
  constexpr int kHeld = 4;  // positions that a thread keeps in registers; more are read again and again
  uint32_t own_keys[kHeld];
  unsigned long long own_mass[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = first + j * kThreads + static_cast<int>(threadIdx.x);
    own_keys[j] = i < last ? rank_key(ranking[positions[i]]) : 0;
    own_mass[j] = i < last ? mass_of(probabilities[positions[i]]) : 0;
  }
  const auto held_from = [&](uint32_t key) {  // by the reserved ones and those whose key is at least this
    unsigned long long sum = 0;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) sum += own_keys[j] >= key ? own_mass[j] : 0;
    for (int i = first + kHeld * kThreads + static_cast<int>(threadIdx.x); i < last; i += kThreads) {
      if (rank_key(ranking[positions[i]]) >= key) sum += mass_of(probabilities[positions[i]]);
    }
    return reserved + sum_mass(sum, shared);
  };
  const auto enough = [&](unsigned long long mass) { return static_cast<double>(mass) >= wanted; };
  if (enough(reserved)) {
    for (int i = first + threadIdx.x; i < last; i += kThreads) {
      atomicAnd(bitmap + positions[i] / 32, ~(1u << positions[i] % 32));
    }
    __syncthreads();
    return;
  }
  if (!enough(held_from(0))) return;
  uint32_t key = 0;  // the highest from which on there is enough
  for (int bit = 31; bit >= 0; --bit) {
    if (enough(held_from(key | 1u << bit))) key |= 1u << bit;
  }
  const unsigned long long held = key == 0xffffffffu ? reserved : held_from(key + 1);
  // Of those that have the key itself, the first ones, until there is enough. Mostly it is one.
  if (threadIdx.x < 32) {
    unsigned long long sum = held;
    for (int begin = first; begin < last; begin += 32) {
      const int i = begin + static_cast<int>(threadIdx.x);
      const bool inside = i < last;
      const int position = inside ? positions[i] : 0;
      const uint32_t own_key = inside ? rank_key(ranking[position]) : 0;
      const bool equal = inside && own_key == key;
      const unsigned long long value = equal ? mass_of(probabilities[position]) : 0;
      const unsigned long long up_to = sum_up_to_lane(value);
      const bool drop = inside && (own_key < key || (equal && enough(sum + up_to - value)));
      if (drop) atomicAnd(bitmap + position / 32, ~(1u << position % 32));
      sum += __shfl_sync(0xffffffffu, up_to, 31);
    }
  }
  __syncthreads();
}

/// Grid (sets, rows).
__global__ void __launch_bounds__(kThreads) top_k_kernel(const __grid_constant__ SelectArgs args) {
  extern __shared__ __align__(16) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  auto* const bitmap = reinterpret_cast<uint32_t*>(memory + sizeof(Shared));
  const int unit = blockIdx.x, run_row = blockIdx.y, row = args.first_row + run_row;
  const RowPolicy policy = row_policy(args.tables, row, args.scan, args.budgets);
  for (int i = threadIdx.x; i < (policy.context + 31) / 32; i += kThreads) bitmap[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < policy.first; i += kThreads) mark(bitmap, i);
  for (int i = policy.last + static_cast<int>(threadIdx.x); i < policy.context; i += kThreads) mark(bitmap, i);
  wait_for_kernels_before();
  const int64_t set = static_cast<int64_t>(run_row) * args.units + unit;
  const float* const pooled = args.pooled + set * args.score_stride;
  const float* const ranking = args.units == args.heads ? args.scores + set * args.score_stride : pooled;
  if (policy.wanted > 0) mark_highest(ranking, policy, args.histogram + set * kBins, shared, bitmap);
  __syncthreads();
  int32_t* const positions =
      args.positions + static_cast<int64_t>(args.row_positions) * row + static_cast<int64_t>(policy.stride) * unit;
  int count = write_marked(bitmap, policy.context, shared, positions);
  if (policy.top_p < 1 && policy.wanted > 0) {
    const double wanted = static_cast<double>(policy.top_p) * static_cast<double>(args.mass[set]);
    __syncthreads();  // the positions are read back
    if (threadIdx.x == 0) args.mass[set] = 0;
    keep_mass(ranking, pooled, policy, wanted, positions, count, shared, bitmap);
    __syncthreads();
    count = write_marked(bitmap, policy.context, shared, positions);
  }
  if (threadIdx.x == 0) args.counts[args.row_units * row + unit] = count;
}

}  // namespace

static size_t top_k_shared_bytes(int max_context) {
  return sizeof(Shared) + sizeof(uint32_t) * ((max_context + 31) / 32);
}

void launch_top_k(const SelectArgs& args, cudaStream_t stream) {
  launch("top-k", Start::Early, top_k_kernel, dim3(args.units, args.run), dim3(kThreads),
         top_k_shared_bytes(args.max_context), stream, args);
}

void prepare_top_k(int max_context) {
  const size_t bytes = top_k_shared_bytes(max_context);
  const int most = shared_memory_limit();
  if (bytes > static_cast<size_t>(most)) {
    fail_with("cuda: a context of " + std::to_string(max_context) +
              " positions is more than a selection has room for on this device, expected at most " +
              std::to_string((most - static_cast<int>(sizeof(Shared))) / 4 * 32));
  }
  // As much as there is: another backend or handle of the process may need more than this one.
  check(cudaFuncSetAttribute(top_k_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared_memory()),
        "top-k");
}

}  // namespace tidal::cuda
