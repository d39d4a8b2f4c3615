// Recurrent layers between their projections: which kernels take which rows, and those for layers of any size: a launch
// convolves all rows at once; one goes through the rows of each chunk, one after the other, with the state in
// registers: a warp has four columns of a head's S, a lane every 32nd key element of them; one norms and gates.
#include "backend/cuda/delta/delta.h"

#include "backend/cuda/delta/delta_chunks.h"
#include "backend/cuda/delta/delta_device.cuh"
#include "backend/cuda/delta/delta_steps.h"

namespace tidal::cuda {
namespace {

constexpr int kWarps = 8, kColumns = 4;  // of a block; of a warp
constexpr int kBlockColumns = kWarps * kColumns;
constexpr int kHeads = 4;     // heads that a block convolves, or norms
constexpr int kMostTaps = 4;  // that a lane keeps in registers
/// As good as -infinity for a logarithm, and differences of sums of them are numbers. What is kept behind such rows has
/// fewer bits, the sums' last.
constexpr float kLeastLog = -104;

/// Rows [first, first + rows) of the batch. `logs`: kept is to be log(a).
struct RowRun {
  int first, rows;
  bool logs;
};

__device__ void find_shares(const DeltaParams& p, const DeltaSizes& net, int row, int head, bool logs) {
  const int64_t at = static_cast<int64_t>(row) * net.value_heads + head;
  const float log = log_kept(__ldcg(p.alpha + at), __ldg(p.alpha_bias + head), __ldg(p.decay + head));
  p.kept[at] = !logs ? kept_share(log) : log < kLeastLog ? kLeastLog : log;  // NaN stays
  p.written[at] = written_share(__ldcg(p.beta + at));
}

/// Rows of a warp that convolves: what one sees, the next ones see, too.
constexpr int kRunRows = 8;

/// What the taps of a channel are multiplied with, of kRunRows rows and as many before them as taps are behind the
/// first.
template <int kTaps>
struct Seen {
  float rows[kRunRows + kTaps - 1];

  __device__ void load(const DeltaParams& p, int width, int channel, int first, int end) {
#pragma unroll
    for (int i = 0; i < kRunRows + kTaps - 1; ++i) {
      const int row = first + i - (kTaps - 1);
      rows[i] = row >= 0 && row < end ? __ldcg(p.mixed + static_cast<int64_t>(row) * width + channel) : 0.0f;
    }
  }
};

/// Of tap t of a row of a chunk, where that lies before the chunk.
__device__ float seen_before(const DeltaParams& p, const DeltaSizes& net, const DeviceChunk& chunk, int channel,
                             int at) {
  return begins(chunk) ? 0.0f : __ldcg(chunk.state + p.state + static_cast<int64_t>(at) * net.mixed_width + channel);
}

/// A warp a head of queries, keys or values and kRunRows rows, a lane every 32nd channel, K at most, and kTaps weights
/// of each, or (0) any number; the last block across makes what is kept and written.
template <int K, int kTaps>
__global__ void __launch_bounds__(32 * kHeads)
    convolve_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net, RowRun run) {
  wait_for_previous();
  let_next_start();
  const int first = run.first + blockIdx.y * kRunRows, end = min(run.first + run.rows, first + kRunRows);
  const int lane = threadIdx.x, dim = net.dim, width = net.mixed_width;
  const int parts = width / dim, part = blockIdx.x * kHeads + threadIdx.y;
  if (blockIdx.x + 1 == gridDim.x) {
    for (int i = threadIdx.y * 32 + lane; i < net.value_heads * (end - first); i += 32 * kHeads) {
      find_shares(p, net, first + i / net.value_heads, i % net.value_heads, run.logs);
    }
    return;
  }
  if (part >= parts) return;
  const auto channel_of = [&](int m) { return part * dim + min(m * 32 + lane, dim - 1); };
  constexpr int kSeen = kTaps > 0 ? kTaps : 1;
  Seen<kSeen> seen[K];
  float taps[K][kSeen];
  if constexpr (kTaps > 0) {
#pragma unroll
    for (int m = 0; m < K; ++m) {
      seen[m].load(p, width, channel_of(m), first, end);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) taps[m][t] = __ldg(p.taps + static_cast<int64_t>(channel_of(m)) * kTaps + t);
    }
  }
#pragma unroll
  for (int r = 0; r < kRunRows; ++r) {
    const int row = first + r;
    if (row >= end) break;
    const DeviceChunk& chunk = p.tables.chunks[p.tables.row_chunk[row]];
    const int in_chunk = row - chunk.first_row, before = net.taps - 1;
    float values[K], squares = 0;
#pragma unroll
    for (int m = 0; m < K; ++m) {
      const int channel = channel_of(m);
      float sum = 0;
      if constexpr (kTaps > 0) {
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
          const int from = in_chunk + t - (kTaps - 1);
          const float value = from >= 0 ? seen[m].rows[r + t] : seen_before(p, net, chunk, channel, from + kTaps - 1);
          sum = __fmaf_rn(taps[m][t], value, sum);
        }
      } else {
        for (int t = 0; t <= before; ++t) {
          const int from = in_chunk + t - before;
          const float value = from >= 0 ? __ldcg(p.mixed + static_cast<int64_t>(row + t - before) * width + channel)
                                        : seen_before(p, net, chunk, channel, from + before);
          sum = __fmaf_rn(__ldg(p.taps + static_cast<int64_t>(channel) * net.taps + t), value, sum);
        }
      }
      values[m] = m * 32 + lane < dim ? silu(sum) : 0.0f;
      squares = __fmaf_rn(values[m], values[m], squares);
    }
    float factor = 1;
    if (part < 2 * net.key_heads) factor = unit_factor(tree_sum<1, 16>(squares), p.epsilon, part < net.key_heads, dim);
    float* to = p.convolved + static_cast<int64_t>(row) * width + part * dim;
#pragma unroll
    for (int m = 0; m < K; ++m) {
      if (const int d = m * 32 + lane; d < dim) to[d] = __fmul_rn(values[m], factor);
    }
  }
}

/// What a warp needs of one row.
template <int K>
struct Row {
  float q[K], k[K], v[kColumns], kept, written;

  /// Row `row` of the batch, of a value head and its key head, from column `first_column` of S on.
  __device__ void load(const DeltaParams& p, const DeltaSizes& net, int row, int head, int key_head, int first_column) {
    const int lane = threadIdx.x % 32, dim = net.dim;
    const float* from = p.convolved + static_cast<int64_t>(row) * net.mixed_width;
    const float* query = from + key_head * dim;
#pragma unroll
    for (int m = 0; m < K; ++m) {
      const int i = m * 32 + lane;
      q[m] = i < dim ? __ldcg(query + i) : 0.0f;
      k[m] = i < dim ? __ldcg(query + net.key_width + i) : 0.0f;
    }
    const float4 value = __ldcg(reinterpret_cast<const float4*>(from + 2 * net.key_width + head * dim + first_column));
    v[0] = value.x, v[1] = value.y, v[2] = value.z, v[3] = value.w;
    kept = __ldcg(p.kept + static_cast<int64_t>(row) * net.value_heads + head);
    written = __ldcg(p.written + static_cast<int64_t>(row) * net.value_heads + head);
  }
};

/// Every sum over all lanes.
__device__ void add_over_lanes(float (&sums)[kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) sums[c] = tree_sum<1, 16>(sums[c]);
}

/// S of one row more, and what it is read with: of kColumns columns.
template <int K>
__device__ void delta_step(float (&s)[K][kColumns], const float (&q)[K], const float (&k)[K],
                           const float (&v)[kColumns], float kept, float written, float (&read)[kColumns]) {
  float sums[kColumns] = {};
#pragma unroll
  for (int m = 0; m < K; ++m) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      s[m][c] = __fmul_rn(s[m][c], kept);
      sums[c] = __fmaf_rn(s[m][c], k[m], sums[c]);
    }
  }
  add_over_lanes(sums);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const float correction = __fmul_rn(written, __fsub_rn(v[c], sums[c]));
    read[c] = 0;
#pragma unroll
    for (int m = 0; m < K; ++m) {
      s[m][c] = __fmaf_rn(k[m], correction, s[m][c]);
      read[c] = __fmaf_rn(s[m][c], q[m], read[c]);
    }
  }
  add_over_lanes(read);
}

/// The grid is (groups of columns, value heads, chunks). K: ceil(head_dim / 32).
template <int K>
__global__ void __launch_bounds__(32 * kWarps)
    recur_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net, int first_chunk) {
  wait_for_previous();
  let_next_start();
  const DeviceChunk& chunk = p.tables.chunks[first_chunk + blockIdx.z];
  const int lane = threadIdx.x % 32, dim = net.dim, head = blockIdx.y;
  const bool begin = begins(chunk);
  float* const tail = chunk.state + p.state;
  keep_tail(p, net, chunk, tail, (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x,
            gridDim.x * gridDim.y * blockDim.x);
  const int column = blockIdx.x * kBlockColumns + threadIdx.x / 32 * kColumns;
  if (column >= dim) return;
  float* const state = tail + net.tail + static_cast<int64_t>(head) * dim * dim + column;
  float s[K][kColumns];
#pragma unroll
  for (int m = 0; m < K; ++m) {
    const int i = m * 32 + lane;
    float4 value = make_float4(0, 0, 0, 0);
    if (i < dim && !begin) value = __ldcg(reinterpret_cast<const float4*>(state + static_cast<int64_t>(i) * dim));
    s[m][0] = value.x, s[m][1] = value.y, s[m][2] = value.z, s[m][3] = value.w;
  }
  const int key_head = net.key_head(head);
  Row<K> next;
  next.load(p, net, chunk.first_row, head, key_head, column);
  for (int r = 0; r < chunk.rows; ++r) {
    const int row = chunk.first_row + r;
    const Row<K> now = next;
    if (r + 1 < chunk.rows) next.load(p, net, row + 1, head, key_head, column);
    float read[kColumns];
    delta_step<K>(s, now.q, now.k, now.v, now.kept, now.written, read);
    if (lane == 0) {
      *reinterpret_cast<float4*>(p.out + static_cast<int64_t>(row) * net.value_width + head * dim + column) =
          make_float4(read[0], read[1], read[2], read[3]);
    }
  }
#pragma unroll
  for (int m = 0; m < K; ++m) {
    const int i = m * 32 + lane;
    if (i >= dim) continue;
    *reinterpret_cast<float4*>(state + static_cast<int64_t>(i) * dim) = make_float4(s[m][0], s[m][1], s[m][2], s[m][3]);
  }
}

/// A warp a value head and a row.
template <int K>
__global__ void __launch_bounds__(32 * kHeads)
    norm_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net, int first_row) {
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x, dim = net.dim, head = blockIdx.x * kHeads + threadIdx.y;
  if (head >= net.value_heads) return;
  const int64_t at = static_cast<int64_t>(first_row + blockIdx.y) * net.value_width + head * dim;
  float own[K], gates[K], squares = 0;
#pragma unroll
  for (int m = 0; m < K; ++m) {
    const int d = m * 32 + lane;
    own[m] = d < dim ? __ldcg(p.out + at + d) : 0.0f;
    gates[m] = d < dim ? __ldcg(p.gates + at + d) : 0.0f;
    squares = __fmaf_rn(own[m], own[m], squares);
  }
  const float factor = 1.0f / sqrtf(tree_sum<1, 16>(squares) / static_cast<float>(dim) + p.epsilon);
#pragma unroll
  for (int m = 0; m < K; ++m) {
    const int d = m * 32 + lane;
    if (d < dim) p.out[at + d] = gated(own[m], factor, __ldg(p.norm + d), gates[m]);
  }
}

__global__ void gate_kernel(const float* gates, float* out, int64_t count) {
  wait_for_previous();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __fdiv_rn(out[i], __fadd_rn(1.0f, expf(-__ldcg(gates + i))));
}

/// All that depends on K = ceil(head_dim / 32), at most.
template <int K>
struct Launches {
  static void convolve(const DeltaParams& p, const DeltaSizes& net, RowRun run, cudaStream_t stream) {
    const auto kernel = net.taps == kMostTaps ? convolve_kernel<K, kMostTaps> : convolve_kernel<K, 0>;
    const int parts = net.mixed_width / net.dim;
    launch("a causal convolution", Start::Early, kernel,
           dim3((parts + kHeads - 1) / kHeads + 1, (run.rows + kRunRows - 1) / kRunRows), dim3(32, kHeads), 0, stream,
           p, net, run);
  }
  static void recur(const DeltaParams& p, const DeltaSizes& net, int first_chunk, int chunks, cudaStream_t stream) {
    const dim3 grid((net.dim + kBlockColumns - 1) / kBlockColumns, net.value_heads, chunks);
    launch("the delta rule", Start::Early, recur_kernel<K>, grid, dim3(32 * kWarps), 0, stream, p, net, first_chunk);
  }
  static void norm(const DeltaParams& p, const DeltaSizes& net, RowRun run, cudaStream_t stream) {
    launch("the norm of recurrent heads", Start::Early, norm_kernel<K>,
           dim3((net.value_heads + kHeads - 1) / kHeads, run.rows), dim3(32, kHeads), 0, stream, p, net, run.first);
  }

  static void all(const DeltaParams& p, cudaStream_t stream) {
    const DeltaSizes net(p.net);
    const bool steps = steps_at_once(p.net), blocks = chunks_at_once(p.net);
    if (steps && p.decode_chunks > 0) launch_delta_steps(p, stream);
    const int first = steps ? p.decode_rows : 0, first_chunk = steps ? p.decode_chunks : 0;
    // By one way or the other: decode rows, and long chunks.
    const auto run_of = [&](int begin, int end, bool logs) { return RowRun{begin, end - begin, logs}; };
    if (const RowRun run = run_of(first, blocks ? p.decode_rows : p.rows, false); run.rows > 0) {
      convolve(p, net, run, stream);
      recur(p, net, first_chunk, p.decode_chunks - first_chunk + (blocks ? 0 : static_cast<int>(p.long_chunks.size())),
            stream);
      norm(p, net, run, stream);
    }
    if (const RowRun run = run_of(p.decode_rows, p.rows, true); blocks && run.rows > 0) {
      convolve(p, net, run, stream);
      int chunk = p.decode_chunks;
      for (const int rows : p.long_chunks) launch_delta_chunk(p, chunk++, rows, stream);
      norm(p, net, run, stream);
    }
  }
};

}  // namespace

void launch_delta(const DeltaParams& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  switch ((p.net.head_dim + 31) / 32) {
    case 1: return Launches<1>::all(p, stream);
    case 2: return Launches<2>::all(p, stream);
    case 3: return Launches<3>::all(p, stream);
    case 4: return Launches<4>::all(p, stream);
    default: return Launches<kMostDeltaDim / 32>::all(p, stream);
  }
}

void launch_gate(const float* gates, float* out, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch("the gate of attention", Start::Early, gate_kernel, dim3(static_cast<unsigned>((count + 255) / 256)),
         dim3(256), 0, stream, gates, out, count);
}

}  // namespace tidal::cuda
