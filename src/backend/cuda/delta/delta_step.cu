// A recurrent layer's decode rows in one launch: convolution, delta rule, norm and gate.
//
// A block has a value head of a chunk, and goes through its rows one after the other with S in registers: a thread has
// a column's elements of an eighth of the keys. S, the rows that the convolution saw last and all weights are asked for
// before the kernel waits for the projections. Value heads that share a key head convolve it each for itself; what it
// keeps for the next pass is written by the last one to have read it.
#include <algorithm>

#include "backend/cuda/delta/delta_device.cuh"
#include "backend/cuda/delta/delta_steps.h"

namespace tidal::cuda {
namespace {

constexpr int kMostTaps = 4;                   // of a convolution
constexpr int kGroups = 8;                     // of keys
constexpr int kKeys = kMostStepDim / kGroups;  // of a group, at most
constexpr int kMostWarps = kMostStepDim / 32;  // of a head's elements

struct StepShared {
  float mixed[3][kMostStepDim];          // query, key, value
  float sums[2][kGroups][kMostStepDim];  // over the keys of a group: of S k, and of what is read
  float squares[3][kMostWarps];          // of query, key, and what is read
  float kept, written;
  bool last;
};

/// A channel's convolution, by one thread: what it saw last, and its weights.
struct Channel {
  int index = -1;  // of the mixed ones; -1: the thread has none
  float seen[kMostTaps], taps[kMostTaps];

  __device__ void load(const DeltaParams& p, const DeltaSizes& net, const DeviceChunk& chunk, const float* tail) {
#pragma unroll
    for (int t = 0; t < kMostTaps; ++t) {
      seen[t] = taps[t] = 0;
      if (index < 0 || t >= net.taps) continue;
      taps[t] = __ldg(p.taps + static_cast<int64_t>(index) * net.taps + t);
      if (t > 0 && !begins(chunk)) seen[t] = __ldcg(tail + static_cast<int64_t>(t - 1) * net.mixed_width + index);
    }
  }
  /// With one row more.
  __device__ float next(const DeltaSizes& net, float value) {
    float sum = 0;
#pragma unroll
    for (int t = 0; t < kMostTaps; ++t) {
      seen[t] = t + 1 < net.taps ? seen[t + 1 < kMostTaps ? t + 1 : t] : t + 1 == net.taps ? value : 0;
      sum = __fmaf_rn(taps[t], seen[t], sum);
    }
    return silu(sum);
  }
  __device__ void keep(const DeltaSizes& net, float* tail) const {
#pragma unroll
    for (int t = 1; t < kMostTaps; ++t) {
      if (t < net.taps) tail[static_cast<int64_t>(t - 1) * net.mixed_width + index] = seen[t];
    }
  }
};

/// The sum of a head's squares, of which each of its warps has one.
template <int K>
__device__ float add_warps(const float (&squares)[kMostWarps]) {
  float sum = squares[0];
#pragma unroll
  for (int w = 1; w < K; ++w) sum = __fadd_rn(sum, squares[w]);
  return sum;
}

__device__ float add_groups(const float (&sums)[kGroups][kMostStepDim], int column) {
  float sum = sums[0][column];
#pragma unroll
  for (int group = 1; group < kGroups; ++group) sum = __fadd_rn(sum, sums[group][column]);
  return sum;
}

/// S of one row more, and what it is read with. All threads of the block call it; those without a column have no keys.
template <int K>
__device__ void step(StepShared& shared, float (&s)[kKeys], int first_key, int keys, int column, int group,
                     float epsilon, int dim) {
  const float query = unit_factor(add_warps<K>(shared.squares[0]), epsilon, true, dim);
  const float key = unit_factor(add_warps<K>(shared.squares[1]), epsilon, false, dim), kept = shared.kept;
  const auto key_at = [&](int j) { return __fmul_rn(shared.mixed[1][first_key + j], key); };
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    if (j >= keys) break;
    s[j] = __fmul_rn(s[j], kept);
    sum = __fmaf_rn(s[j], key_at(j), sum);
  }
  if (keys > 0) shared.sums[0][group][column] = sum;
  __syncthreads();
  if (keys > 0) {
    const float known = add_groups(shared.sums[0], column);
    const float correction = __fmul_rn(shared.written, __fsub_rn(shared.mixed[2][column], known));
    float read = 0;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      if (j >= keys) break;
      s[j] = __fmaf_rn(key_at(j), correction, s[j]);
      read = __fmaf_rn(s[j], __fmul_rn(shared.mixed[0][first_key + j], query), read);
    }
    shared.sums[1][group][column] = read;
  }
  __syncthreads();
}

/// Grid (value heads, decode chunks). K: ceil(head_dim / 32). 3 K warps convolve, one more has a and b.
template <int K>
__global__ void __launch_bounds__(kGroups* kMostStepDim)
    delta_step_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net) {
  __shared__ StepShared shared;
  const DeviceChunk& chunk = p.tables.chunks[blockIdx.y];
  const int head = blockIdx.x, key_head = net.key_head(head), dim = net.dim;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = warp / K, in_head = warp % K * 32 + lane;  // query, key, value
  const int column = threadIdx.x % dim, group = threadIdx.x / dim;
  const int keys = group < kGroups ? dim / kGroups : 0, first_key = group * keys;
  const bool convolves = part < 3 && in_head < dim, norms = part == 0 && in_head < dim;
  float* const tail = chunk.state + p.state;
  float* const state = tail + net.tail + (static_cast<int64_t>(head) * dim + first_key) * dim + column;

  float s[kKeys];
#pragma unroll
  for (int j = 0; j < kKeys; ++j)
    s[j] = j < keys && !begins(chunk) ? __ldcg(state + static_cast<int64_t>(j) * dim) : 0.0f;
  Channel channel;
  if (convolves) {
    channel.index =
        part < 2 ? part * net.key_width + key_head * dim + in_head : 2 * net.key_width + head * dim + in_head;
  }
  channel.load(p, net, chunk, tail);
  const float weight = norms ? __ldg(p.norm + in_head) : 0.0f;
  const float bias = __ldg(p.alpha_bias + head), decay = __ldg(p.decay + head);
  wait_for_previous();
  let_next_start();

  uint32_t order = 0;  // of the blocks that share the key head, by when they have read what its convolution saw
  for (int r = 0; r < chunk.rows; ++r) {
    const int64_t row = chunk.first_row + r;
    const int64_t out = row * net.value_width + head * dim + in_head;
    float value = 0, gate = 0;
    if (convolves) value = __ldcg(p.mixed + row * net.mixed_width + channel.index);
    if (norms) gate = __ldcg(p.gates + out);
    if (part < 3) {
      const float mixed = convolves ? channel.next(net, value) : 0;
      if (convolves) shared.mixed[part][in_head] = mixed;
      const float squares = tree_sum<1, 16>(__fmul_rn(mixed, mixed));
      // A value's are of no account, and where they would be the last row's reading may still be normed by.
      if (part < 2 && lane == 0) shared.squares[part][warp % K] = squares;
    } else if (warp == 3 * K) {
      const int64_t at = row * net.value_heads + head;
      if (lane == 0) shared.kept = kept_share(log_kept(__ldcg(p.alpha + at), bias, decay));
      if (lane == 1) shared.written = written_share(__ldcg(p.beta + at));
    }
    __syncthreads();
    uint32_t* const arrived = p.arrived + static_cast<int64_t>(blockIdx.y) * net.key_heads + key_head;
    if (r == 0 && threadIdx.x == 0) order = atomicAdd(arrived, 1u);
    step<K>(shared, s, first_key, keys, column, group, p.epsilon, dim);
    const float read = norms ? add_groups(shared.sums[1], in_head) : 0.0f;
    if (part == 0) {
      const float squares = tree_sum<1, 16>(__fmul_rn(read, read));
      if (lane == 0) shared.squares[2][warp] = squares;
    }
    if (r + 1 == chunk.rows && threadIdx.x == 0) {
      shared.last = order + 1 == static_cast<uint32_t>(net.value_heads / net.key_heads);
      if (shared.last) *arrived = 0;
    }
    __syncthreads();
    if (norms) {
      const float mean = add_warps<K>(shared.squares[2]) / static_cast<float>(dim);
      p.out[out] = gated(read, 1.0f / sqrtf(mean + p.epsilon), weight, gate);
    }
  }
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    if (j < keys) state[static_cast<int64_t>(j) * dim] = s[j];
  }
  if (convolves && (part == 2 || shared.last)) channel.keep(net, tail);
}

template <int K>
void launch_steps(const DeltaParams& p, cudaStream_t stream) {
  const DeltaSizes net(p.net);
  const int warps = std::max((net.dim * kGroups + 31) / 32, 3 * K + 1);
  launch("the delta rule", Start::Early, delta_step_kernel<K>, dim3(net.value_heads, p.decode_chunks), dim3(32 * warps),
         0, stream, p, net);
}

}  // namespace

bool steps_at_once(const DeltaNet& net) { return net.head_dim <= kMostStepDim && net.taps <= kMostTaps; }

void launch_delta_steps(const DeltaParams& p, cudaStream_t stream) {
  switch ((p.net.head_dim + 31) / 32) {
    case 1: return launch_steps<1>(p, stream);
    case 2: return launch_steps<2>(p, stream);
    case 3: return launch_steps<3>(p, stream);
    default: return launch_steps<4>(p, stream);
  }
}

}  // namespace tidal::cuda
