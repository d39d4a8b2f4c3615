// The tiers of a completion: which of the estimated positions are ranked by their keys, which of these are selected,
// and what weight each has. One CTA a row and KV head.
#include "backend/cuda/completion/complete_args.h"
#include "backend/cuda/selection/select_pool.cuh"

namespace tidal::cuda {
namespace {

constexpr int kTierThreads = 512;
constexpr int kTierWarps = kTierThreads / 32;

/// What this CTA works on.
struct Tier {
  int row, run_row, kv_head, group;
  int64_t set, first_head;  // of the run
  int estimated;            // positions
  const int32_t* list;
};

/// How many of the threads before this one say `taken`, and how many of all do.
__device__ int2 places(bool taken, int* warp_counts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t votes = __ballot_sync(0xffffffffu, taken);
  __syncthreads();
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), all = 0;
#pragma unroll
  for (int w = 0; w < kTierWarps; ++w) {
    before += w < warp ? warp_counts[w] : 0;
    all += warp_counts[w];
  }
  return {before, all};
}

/// Calls take(i, place) for the first `first` and the last `recent` of `count`, and of the others for the `wanted`
/// with the highest keys, ties to the lower i. In ascending order of i.
template <typename Take>
__device__ void take_best(const uint32_t* keys, int count, int first, int recent, int wanted, int* warp_counts,
                          Take take) {
  const int last = count - recent;
  const auto ranked_above = [&](uint32_t bound) {  // how many have a key of at least that
    int own = 0;
    for (int i = first + static_cast<int>(threadIdx.x); i < last; i += kTierThreads) own += keys[i] >= bound;
    own = __reduce_add_sync(0xffffffffu, own);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warp_counts[threadIdx.x / 32] = own;
    __syncthreads();
    int all = 0;
#pragma unroll
    for (int w = 0; w < kTierWarps; ++w) all += warp_counts[w];
    return all;
  };
  // The highest bound that enough reach.
  uint32_t bound = 0;
  for (int bit = 31; bit >= 0 && wanted > 0; --bit) {
    const uint32_t higher = bound | 1u << bit;
    if (ranked_above(higher) >= wanted) bound = higher;
  }
  const int above = wanted > 0 && bound != 0xffffffffu ? ranked_above(bound + 1) : 0;
  int ties = wanted - above, place = 0;
  for (int begin = 0; begin < count; begin += kTierThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const bool reserved = i < count && (i < first || i >= last);
    const uint32_t key = i < count && !reserved ? keys[i] : 0;
    const bool ranks = i < count && !reserved && wanted > 0;
    const bool equal = ranks && key == bound;
    const int2 tie = places(equal, warp_counts);
    const bool taken = reserved || (ranks && key > bound) || (equal && tie.x < ties);
    ties -= min(tie.y, ties);
    const int2 own = places(taken, warp_counts);
    if (taken) take(i, place + own.x);
    place += own.y;
  }
  __syncthreads();
}

/// The scores of the ranked positions by their keys: a warp some positions at a time.
template <int kSteps>
__device__ void score_keys(const CompleteArgs& args, const Tier& tier, const int32_t* ranked, int count) {
  constexpr int kAtOnce = kSteps <= 4 ? 4 : 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t* const table = row_of(args.tables, tier.row).table;
  const float* const q =
      args.q + (static_cast<int64_t>(tier.row) * args.heads + tier.kv_head * tier.group) * args.head_dim;
  for (int begin = warp * kAtOnce; begin < count; begin += kTierWarps * kAtOnce) {
    float keys[kAtOnce][kSteps];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int p = tier.list[ranked[min(begin + j, count - 1)]];
      const int64_t tile = static_cast<int64_t>(table[p / kBlockTokens]) * args.kv_heads + tier.kv_head;
      const std::byte* const row = args.kv + tile * args.tile_stride + p % kBlockTokens * args.row_bytes;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int d = 32 * i + lane;
        keys[j][i] = d < args.head_dim ? key_at(args.row, row, d) : 0.0f;
      }
    }
    for (int h = 0; h < tier.group; ++h) {
      float sums[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int d = 32 * i + lane;
        const float query = d < args.head_dim ? q[h * args.head_dim + d] : 0.0f;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) sums[j] = __fmaf_rn(query, keys[j][i], sums[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float score = sum_over_warp(sums[j]);
        if (lane == 0 && begin + j < count) args.key_scores[(tier.first_head + h) * args.room + begin + j] = score;
      }
    }
  }
  __syncthreads();
}

/// What `count` positions are ranked by, from their raw scores: score_of(head, i).
template <typename ScoreOf>
__device__ void pool(const CompleteArgs& args, const Tier& tier, const HeadShare* shares, int count, uint32_t* keys,
                     ScoreOf score_of) {
  for (int i = threadIdx.x; i < count; i += kTierThreads) {
    if (tier.group == 1) {
      keys[i] = rank_key(score_of(0, i));
      continue;
    }
    float sum = 0;
    for (int h = 0; h < tier.group; ++h) sum = add_share(sum, score_of(h, i), shares[h], args.scale);
    keys[i] = rank_key(__fmul_rn(sum, 0x1p-64f));
  }
  __syncthreads();
}

/// The softmaxes over the ranked positions, by their keys.
__device__ void share_keys(const CompleteArgs& args, const Tier& tier, int count, HeadShare* shares) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int h = warp; h < tier.group; h += kTierWarps) {
    const float* const scores = args.key_scores + (tier.first_head + h) * args.room;
    float top = negative_infinity(), sum = 0;
    for (int i = lane; i < count; i += 32) top = fmaxf(top, scores[i]);
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, apart));
    for (int i = lane; i < count; i += 32) {
      sum = __fadd_rn(sum, __fmul_rn(softmax_term(scores[i], top, args.scale), 0x1p-64f));
    }
    sum = sum_over_warp(sum);
    if (lane == 0) shares[h] = {top, sum > 0 ? __fdiv_rn(1.0f, sum) : 0.0f};
  }
  __syncthreads();
}

/// The weights of the estimated tier, whose scores are -infinity from then on.
__device__ void weigh(const CompleteArgs& args, const Tier& tier, const HeadShare* scanned, const HeadShare* keyed,
                      const int32_t* ranked, int ranked_count) {
  Source* const sources = args.sources + tier.set * args.room;
  for (int h = 0; h < tier.group; ++h) {
    const float reference = fmaxf(scanned[h].maximum, keyed[h].maximum);
    const int64_t head = tier.first_head + h;
    if (threadIdx.x == 0) args.references[head] = reference;
    float* const weights = args.weights + head * args.room;
    float* const scores = args.scores + head * args.score_stride;
    for (int i = threadIdx.x; i < tier.estimated; i += kTierThreads) {
      float& score = scores[tier.list[i]];
      if (sources[i] == Source::Sketch) {
        weights[i] = power_of_two(__fmul_rn(__fsub_rn(score, reference), args.scale));
      }
      score = negative_infinity();
    }
    const float* const key_scores = args.key_scores + head * args.room;
    for (int i = threadIdx.x; i < ranked_count; i += kTierThreads) {
      weights[ranked[i]] = power_of_two(__fmul_rn(__fsub_rn(key_scores[i], reference), args.scale));
    }
  }
}

/// Grid (KV heads, rows); shared memory: twice [group] HeadShare.
__global__ void __launch_bounds__(kTierThreads) tiers_kernel(const __grid_constant__ CompleteArgs args) {
  extern __shared__ HeadShare shares[];
  __shared__ int warp_counts[kTierWarps];
  __shared__ float share_sums[kShareThreads / 32];
  wait_for_kernels_before();
  Tier tier;
  tier.kv_head = blockIdx.x;
  tier.run_row = blockIdx.y;
  tier.row = args.first_row + tier.run_row;
  tier.group = args.heads / args.kv_heads;
  tier.set = static_cast<int64_t>(tier.run_row) * args.kv_heads + tier.kv_head;
  tier.first_head = static_cast<int64_t>(tier.run_row) * args.heads + tier.kv_head * tier.group;
  const RowPolicy outer = row_policy(args.tables, tier.row, true, args.completion.estimated);
  const RowPolicy inner = row_policy(args.tables, tier.row, true, args.completion.ranked);
  const RowPolicy own = row_policy(args.tables, tier.row, true);
  tier.list = args.lists + static_cast<int64_t>(args.row_lists) * tier.run_row +
              static_cast<int64_t>(outer.stride) * tier.kv_head;
  tier.estimated = outer.first + outer.wanted + outer.context - outer.last;
  HeadShare* const scanned = shares;
  HeadShare* const keyed = shares + tier.group;
  const float* const scores = args.scores + tier.first_head * args.score_stride;
  for (int h = 0; h < tier.group; ++h) {
    const SoftmaxPart whole =
        whole_of(args.statistics + (tier.first_head + h) * args.statistic_parts, args.statistic_parts, args.scale);
    // Of the first lane, as the selection has it.
    const SoftmaxPart part = {__shfl_sync(0xffffffffu, whole.maximum, 0), __shfl_sync(0xffffffffu, whole.sum, 0)};
    const HeadShare share =
        tier.group == 1 ? HeadShare{part.maximum, 0.0f}
                        : head_share(part, scores + h * args.score_stride, outer.context, args.scale, share_sums);
    if (threadIdx.x == 0) scanned[h] = share;
  }
  __syncthreads();

  uint32_t* const keys = args.keys + tier.set * args.room;
  Source* const sources = args.sources + tier.set * args.room;
  int32_t* const ranked = args.ranked + tier.set * args.room;
  pool(args, tier, scanned, tier.estimated, keys,
       [&](int h, int i) { return scores[h * args.score_stride + tier.list[i]]; });
  for (int i = threadIdx.x; i < tier.estimated; i += kTierThreads) sources[i] = Source::Sketch;
  __syncthreads();
  take_best(keys, tier.estimated, inner.first, inner.context - inner.last, inner.wanted, warp_counts,
            [&](int i, int place) {
              sources[i] = Source::Key;
              ranked[place] = i;
            });
  const int count = inner.first + inner.wanted + inner.context - inner.last;
  if (args.head_dim <= 128) {
    score_keys<4>(args, tier, ranked, count);
  } else {
    score_keys<16>(args, tier, ranked, count);
  }
  share_keys(args, tier, count, keyed);
  pool(args, tier, keyed, count, keys,
       [&](int h, int i) { return args.key_scores[(tier.first_head + h) * args.room + i]; });
  int32_t* const selected = args.positions + static_cast<int64_t>(args.row_positions) * tier.row +
                            static_cast<int64_t>(own.stride) * tier.kv_head;
  take_best(keys, count, own.first, own.context - own.last, own.wanted, warp_counts, [&](int i, int place) {
    sources[ranked[i]] = Source::Selected;
    selected[place] = tier.list[ranked[i]];
  });
  if (threadIdx.x == 0) {
    args.counts[args.row_units * tier.row + tier.kv_head] = own.first + own.wanted + own.context - own.last;
  }
  weigh(args, tier, scanned, keyed, ranked, count);
}

}  // namespace

void launch_tiers(const CompleteArgs& args, cudaStream_t stream) {
  launch("tiers of positions", Start::Early, tiers_kernel, dim3(args.kv_heads, args.run), dim3(kTierThreads),
         2 * sizeof(HeadShare) * args.heads / args.kv_heads, stream, args);
}

}  // namespace tidal::cuda
