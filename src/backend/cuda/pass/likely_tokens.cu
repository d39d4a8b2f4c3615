#include <algorithm>
#include <utility>

#include "backend/cuda/pass/likely_tokens.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/selection/rank_key.cuh"

namespace tidal::cuda {
namespace {

// A token is a number: its logit in the order of unsigned integers, below it the token, inverted, so that of equal
// logits the lower token has the larger number. 0 is none: even -infinity is above it.

constexpr int kThreads = 512;
/// Numbers that one block sorts. What it keeps of them goes on to the next round, until one block has them all.
constexpr int kSlice = 4096;
constexpr uint32_t kNanKey = 0xffffffffu;

static_assert(2 * kMostLikely <= kSlice, "every round must leave less than it found");

__device__ uint64_t key_of(float logit, int token) {
  const uint32_t number = number_key(logit), rank = isnan(logit) ? kNanKey : number;
  return static_cast<uint64_t>(rank) << 32 | ~static_cast<uint32_t>(token);
}

__device__ LikelyToken token_of(uint64_t key) {
  LikelyToken result;
  result.token = static_cast<Token>(~static_cast<uint32_t>(key));
  result.logit = score_of(static_cast<uint32_t>(key >> 32));
  return result;
}

struct Round {
  const float* logits;   ///< [rows, width]; null: keys
  const uint64_t* keys;  ///< [rows, width]
  int width;             ///< of a row
  int count;             ///< how many every slice keeps
  uint64_t* kept;        ///< [rows, slices, count], largest first; null in the last round
  LikelyToken* out;      ///< [rows, count], of the last round
};

__device__ uint64_t key_at(const Round& round, int row, int i) {
  if (i >= round.width) return 0;
  const int64_t at = static_cast<int64_t>(row) * round.width + i;
  return round.logits ? key_of(__ldcg(round.logits + at), i) : __ldcg(round.keys + at);
}

__device__ void keep(const Round& round, int row, int slice, int rank, uint64_t key) {
  if (round.out) {
    round.out[static_cast<int64_t>(row) * round.count + rank] = token_of(key);
  } else {
    round.kept[(static_cast<int64_t>(row) * gridDim.x + slice) * round.count + rank] = key;
  }
}

/// The largest of a slice. Grid: slices, rows.
__global__ void __launch_bounds__(kThreads) largest_kernel(const __grid_constant__ Round round) {
  let_next_start();
  __shared__ uint64_t warps[kThreads / 32];
  const int row = blockIdx.y, first = blockIdx.x * kSlice;
  wait_for_previous();
  uint64_t best = 0;
#pragma unroll
  for (int i = threadIdx.x; i < kSlice; i += kThreads) best = max(best, key_at(round, row, first + i));
  const auto across = [&best] {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, lane));
  };
  across();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : 0;
  across();
  if (threadIdx.x == 0) keep(round, row, blockIdx.x, 0, best);
}

/// The `count` largest of a slice, by sorting it (a bitonic network, largest first). Grid: slices, rows.
__global__ void __launch_bounds__(kThreads) sort_kernel(const __grid_constant__ Round round) {
  let_next_start();
  __shared__ uint64_t keys[kSlice];
  const int row = blockIdx.y, first = blockIdx.x * kSlice;
  // The last slice may be short: a smaller network will do.
  const int filled = min(kSlice, round.width - first);
  int size = 2;
  while (size < filled) size *= 2;
  wait_for_previous();
  for (int i = threadIdx.x; i < size; i += kThreads) keys[i] = key_at(round, row, first + i);
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int a = pair / apart * 2 * apart + pair % apart, b = a + apart;
        const bool falling = (a & run) == 0;
        const uint64_t low = keys[a], high = keys[b];
        if ((low < high) == falling) {
          keys[a] = high;
          keys[b] = low;
        }
      }
      __syncthreads();
    }
  }
  for (int rank = threadIdx.x; rank < round.count; rank += kThreads) {
    keep(round, row, blockIdx.x, rank, rank < size ? keys[rank] : 0);
  }
}

int slices_of(int width) { return (width + kSlice - 1) / kSlice; }

/// Keys of a row that the first round keeps at most, and the second: rounds write to the two parts by turns.
size_t most_kept(int vocab) { return static_cast<size_t>(slices_of(vocab)) * kMostLikely; }
size_t most_kept_again(int vocab) { return most_kept(slices_of(vocab) * kMostLikely); }

}  // namespace

size_t likely_workspace(int rows, int vocab) {
  return sizeof(uint64_t) * (most_kept(vocab) + most_kept_again(vocab)) * static_cast<size_t>(rows);
}

void launch_likely(const LikelyParams& p, cudaStream_t stream) {
  uint64_t *kept = p.keys, *found = p.keys + most_kept(p.vocab) * static_cast<size_t>(p.rows);
  Round round{.logits = p.logits, .keys = nullptr, .width = p.vocab, .count = p.count, .kept = kept, .out = nullptr};
  for (bool last = false; !last;) {
    const int slices = slices_of(round.width);
    last = slices == 1;
    round.kept = last ? nullptr : kept;
    round.out = last ? p.out : nullptr;
    launch("choosing the most likely tokens", Start::Early, p.count == 1 ? largest_kernel : sort_kernel,
           dim3(static_cast<unsigned>(slices), static_cast<unsigned>(p.rows)), dim3(kThreads), 0, stream, round);
    round.logits = nullptr;
    round.keys = kept;
    round.width = slices * p.count;
    std::swap(kept, found);
  }
}

}  // namespace tidal::cuda
