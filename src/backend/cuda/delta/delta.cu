// A launch convolves all rows at once; one goes through the rows of each chunk, one after the other, with the state in
// registers: a warp has four columns of a head's S, a lane every 32nd key element of them; one norms and gates.
#include "backend/cuda/delta/delta.h"

#include <string>

#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kWarps = 8, kColumns = 4;  // of a block; of a warp
constexpr int kBlockColumns = kWarps * kColumns;
constexpr int kHeads = 4;  // heads that a block convolves, or norms

/// DeltaNet's, for kernels.
struct Sizes {
  int dim, key_heads, value_heads, key_width, value_width, mixed_width, taps;
  int64_t tail;
  bool neighbours;

  explicit Sizes(const DeltaNet& net)
      : dim(net.head_dim),
        key_heads(net.key_heads),
        value_heads(net.value_heads),
        key_width(net.key_width()),
        value_width(net.value_width()),
        mixed_width(net.mixed_width()),
        taps(net.taps),
        tail(net.tail_elements()),
        neighbours(net.neighbours) {}
  __device__ int key_head(int value_head) const {
    return neighbours ? value_head / (value_heads / key_heads) : value_head % key_heads;
  }
};

/// Whether the sequence begins with this chunk: what is in its state counts as zeros.
__device__ bool begins(const DeviceChunk& chunk) { return chunk.position == 0; }

/// A warp a head of queries, keys or values and a row; the last blocks of a row make what is kept and written.
__global__ void __launch_bounds__(32 * kHeads)
    convolve_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ Sizes net) {
  __shared__ float values[kHeads][kMostDeltaDim];
  wait_for_previous();
  let_next_start();
  const int row = blockIdx.y, lane = threadIdx.x, dim = net.dim, width = net.mixed_width;
  const int parts = width / dim, part = blockIdx.x * kHeads + threadIdx.y;
  if (part >= parts) {
    for (int h = (part - parts) * 32 + lane; h < net.value_heads; h += 32 * kHeads) {
      const int64_t at = static_cast<int64_t>(row) * net.value_heads + h;
      // In double: what is kept is near to 1, and multiplied up over thousands of rows.
      const double alpha = static_cast<double>(__ldcg(p.alpha + at)) + __ldg(p.alpha_bias + h);
      const double softplus = fmax(alpha, 0.0) + log1p(exp(-fabs(alpha)));
      p.kept[at] = static_cast<float>(exp(__ldg(p.decay + h) * softplus));
      p.written[at] = static_cast<float>(1 / (1 + exp(-static_cast<double>(__ldcg(p.beta + at)))));
    }
    return;
  }
  const DeviceChunk& chunk = p.tables.chunks[p.tables.row_chunk[row]];
  const int before = net.taps - 1, in_chunk = row - chunk.first_row;
  const float* tail = chunk.state + p.state;
  float squares = 0;
  for (int d = lane; d < dim; d += 32) {
    const int channel = part * dim + d;
    float sum = 0;
    for (int t = 0; t <= before; ++t) {
      const int from = in_chunk + t - before;
      float value = 0;
      if (from >= 0) {
        value = __ldcg(p.mixed + static_cast<int64_t>(chunk.first_row + from) * width + channel);
      } else if (!begins(chunk)) {
        value = __ldcg(tail + static_cast<int64_t>(from + before) * width + channel);
      }
      sum = __fmaf_rn(__ldg(p.taps + static_cast<int64_t>(channel) * net.taps + t), value, sum);
    }
    const float result = __fdiv_rn(sum, __fadd_rn(1.0f, expf(-sum)));
    squares = __fmaf_rn(result, result, squares);
    values[threadIdx.y][d] = result;
  }
  float factor = 1;
  if (part < 2 * net.key_heads) {
    factor = 1.0f / sqrtf(__fadd_rn(tree_sum<1, 16>(squares), p.epsilon));
    if (part < net.key_heads) factor = __fmul_rn(factor, 1.0f / sqrtf(static_cast<float>(dim)));
  }
  float* to = p.convolved + static_cast<int64_t>(row) * width + part * dim;
  for (int d = lane; d < dim; d += 32) to[d] = __fmul_rn(values[threadIdx.y][d], factor);
}

/// What a warp needs of one row.
template <int K>
struct Row {
  float q[K], k[K], v[kColumns], kept, written;

  /// Row `row` of the batch, of a value head and its key head, from column `first_column` of S on.
  __device__ void load(const DeltaParams& p, const Sizes& net, int row, int head, int key_head, int first_column) {
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
__device__ void reduce(float (&sums)[kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) sums[c] = tree_sum<1, 16>(sums[c]);
}

/// The grid is (groups of columns, value heads, chunks). K: ceil(head_dim / 32).
template <int K>
__global__ void __launch_bounds__(32 * kWarps)
    recur_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ Sizes net) {
  wait_for_previous();
  let_next_start();
  const DeviceChunk& chunk = p.tables.chunks[blockIdx.z];
  const int lane = threadIdx.x % 32, dim = net.dim, head = blockIdx.y, width = net.mixed_width;
  const bool begin = begins(chunk);
  float* const tail = chunk.state + p.state;
  // What the convolution is going to have seen. A thread has its channels: what it reads it has not written yet.
  const int threads = gridDim.x * gridDim.y * blockDim.x, before = net.taps - 1;
  for (int c = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x; c < width; c += threads) {
    for (int t = 0; t < before; ++t) {
      const int from = chunk.rows + t - before;
      float value = 0;
      if (from >= 0) {
        value = __ldcg(p.mixed + static_cast<int64_t>(chunk.first_row + from) * width + c);
      } else if (!begin) {
        value = tail[static_cast<int64_t>(from + before) * width + c];
      }
      tail[static_cast<int64_t>(t) * width + c] = value;
    }
  }

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
    float sums[kColumns] = {};
#pragma unroll
    for (int m = 0; m < K; ++m) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        s[m][c] = __fmul_rn(s[m][c], now.kept);
        sums[c] = __fmaf_rn(s[m][c], now.k[m], sums[c]);
      }
    }
    reduce(sums);
    float read[kColumns] = {};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float correction = __fmul_rn(now.written, __fsub_rn(now.v[c], sums[c]));
#pragma unroll
      for (int m = 0; m < K; ++m) {
        s[m][c] = __fmaf_rn(now.k[m], correction, s[m][c]);
        read[c] = __fmaf_rn(s[m][c], now.q[m], read[c]);
      }
    }
    reduce(read);
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
__global__ void __launch_bounds__(32 * kHeads)
    norm_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ Sizes net) {
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x, dim = net.dim, head = blockIdx.x * kHeads + threadIdx.y;
  if (head >= net.value_heads) return;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * net.value_width + head * dim;
  float own[kMostDeltaDim / 32], squares = 0;
#pragma unroll
  for (int m = 0; m < kMostDeltaDim / 32; ++m) {
    const int d = m * 32 + lane;
    own[m] = d < dim ? __ldcg(p.out + at + d) : 0.0f;
    squares = __fmaf_rn(own[m], own[m], squares);
  }
  const float factor = 1.0f / sqrtf(tree_sum<1, 16>(squares) / static_cast<float>(dim) + p.epsilon);
#pragma unroll
  for (int m = 0; m < kMostDeltaDim / 32; ++m) {
    const int d = m * 32 + lane;
    if (d >= dim) continue;
    const float gate = __ldcg(p.gates + at + d);
    p.out[at + d] = own[m] * factor * __ldg(p.norm + d) * __fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate)));
  }
}

__global__ void gate_kernel(const float* gates, float* out, int64_t count) {
  wait_for_previous();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __fdiv_rn(out[i], __fadd_rn(1.0f, expf(-__ldcg(gates + i))));
}

template <int K>
void launch_recur(const DeltaParams& p, const Sizes& net, cudaStream_t stream) {
  const dim3 grid((net.dim + kBlockColumns - 1) / kBlockColumns, net.value_heads, p.chunks);
  launch("the delta rule", Start::Early, recur_kernel<K>, grid, dim3(32 * kWarps), 0, stream, p, net);
}

}  // namespace

void launch_delta(const DeltaParams& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  const Sizes net(p.net);
  const int parts = net.mixed_width / net.dim;
  const dim3 warps(32, kHeads);
  // A whole block behind the heads' own.
  launch("a causal convolution", Start::Early, convolve_kernel, dim3(parts / kHeads + 2, p.rows), warps, 0, stream, p,
         net);
  switch ((net.dim + 31) / 32) {
    case 1: launch_recur<1>(p, net, stream); break;
    case 2: launch_recur<2>(p, net, stream); break;
    case 3: launch_recur<3>(p, net, stream); break;
    case 4: launch_recur<4>(p, net, stream); break;
    default: launch_recur<kMostDeltaDim / 32>(p, net, stream); break;
  }
  launch("the norm of recurrent heads", Start::Early, norm_kernel,
         dim3((net.value_heads + kHeads - 1) / kHeads, p.rows), warps, 0, stream, p, net);
}

void launch_gate(const float* gates, float* out, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch("the gate of attention", Start::Early, gate_kernel, dim3(static_cast<unsigned>((count + 255) / 256)),
         dim3(256), 0, stream, gates, out, count);
}

}  // namespace tidal::cuda
