// The delta rule over blocks of 64 rows, as products of matrices (arXiv 2412.06464, section 3.3).
//
// With g_t = a_1 ... a_t, counted from the block's begin, and S what the block begins with, row t of it writes k_t
// u_t^T where (I + L) U = B (V - diag(g) K S), L_ts = b_t g_t / g_s k_t . k_s below the diagonal. So with T = (I +
// L)^-1
//   U = T B V - (T B diag(g) K) S = values - keys S
//   o_t = g_t q_t S + sum over s <= t of (g_t / g_s q_t . k_s) u_s
//   S' = g_64 S + sum over s of g_64 / g_s k_s u_s^T
// The first launch makes values, keys and the products of queries and keys, for all blocks at once; the second goes
// from block to block with 32 columns of S in shared memory. Rows behind the chunk's last count as a = 1, and all else
// 0.
#include <algorithm>

#include "backend/cuda/delta/delta_chunks.h"
#include "backend/cuda/delta/delta_device.cuh"
#include "backend/cuda/delta/tf32.cuh"
#include "backend/cuda/runtime/device_functions.cuh"

namespace tidal::cuda {
namespace {

constexpr int kRows = 64, kMostDim = 128;  // zeros behind the last element of a head
constexpr int kThreads = 256;              // 8 warps: 4 times 16 rows, twice their columns
constexpr int kColumns = 32;               // of S in a block of the second launch
// Strides in shared memory, so that the lanes of a fragment read other banks: rows of the one operand four apart, of
// the other eight.
constexpr int kWide = kMostDim + 4, kAcross = kMostDim + 8, kSquare = kRows + 4, kNarrow = kColumns + 8;

/// What the first launch leaves of a block and value head.
struct Prepared {
  float* values;  // [kRows, dim]
  float* keys;    // [kRows, dim]
  float* shares;  // [kRows, kRows]: g_t / g_s q_t . k_s, 0 above the diagonal
  float* kept;    // [kRows]: g_t
  float* left;    // [kRows]: g_64 / g_s

  __host__ __device__ static int64_t floats(int dim) { return int64_t{kRows} * (2 * dim + kRows + 2); }
  __device__ Prepared(float* scratch, int64_t index, int dim) {
    values = scratch + index * floats(dim);
    keys = values + kRows * dim;
    shares = keys + kRows * dim;
    kept = shares + kRows * kRows;
    left = kept + kRows;
  }
};

/// Which rows of a chunk a launch takes.
struct BlockRun {
  int chunk;
  int first, end;  // rows of the chunk, `first` a multiple of kRows
};

/// Has 64 rows of queries or keys on their way to shared memory.
template <int kStride>
__device__ void copy_head(float* to, const float* from, int64_t stride, int rows, int dim) {
  for (int i = threadIdx.x; i < kRows * kMostDim / 4; i += kThreads) {
    const int row = i / (kMostDim / 4), d = i % (kMostDim / 4) * 4;
    const bool there = row < rows && d < dim;
    copy_async(shared_address(to + row * kStride + d), there ? from + row * stride + d : from, there);
  }
}

struct SolveShared {
  float keys[kRows * kWide], queries[kRows * kWide], lower[kRows * kSquare];
  float logs[kRows], kept[kRows];  // of g, and g
  float written[kRows];
};

/// One column of (I + L) x = rhs in place, by one thread.
__device__ void solve(const float* lower, float (&x)[kRows]) {
#pragma unroll
  for (int t = 1; t < kRows; ++t) {
    float sums[4] = {x[t], 0, 0, 0};
#pragma unroll
    for (int s = 0; s < t; s += 4) {  // behind s = t - 1 it has zeros
      const float4 four = *reinterpret_cast<const float4*>(lower + t * kSquare + s);
      sums[0] = __fmaf_rn(-four.x, x[s], sums[0]);
      if (s + 1 < t) sums[1] = __fmaf_rn(-four.y, x[s + 1], sums[1]);
      if (s + 2 < t) sums[2] = __fmaf_rn(-four.z, x[s + 2], sums[2]);
      if (s + 3 < t) sums[3] = __fmaf_rn(-four.w, x[s + 3], sums[3]);
    }
    x[t] = __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
  }
}

/// Grid (blocks, value heads).
__global__ void __launch_bounds__(kThreads, 2)
    solve_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net, BlockRun run) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<SolveShared*>(memory);
  wait_for_previous();
  let_next_start();
  const int head = blockIdx.y, dim = net.dim, begin = run.first + blockIdx.x * kRows,
            rows = min(kRows, run.end - begin);
  const int64_t first_row = p.tables.chunks[run.chunk].first_row + begin;
  const float* const convolved = p.convolved + first_row * net.mixed_width;
  const float* const query = convolved + net.key_head(head) * dim;
  copy_head<kWide>(shared.keys, query + net.key_width, net.mixed_width, rows, dim);
  copy_head<kWide>(shared.queries, query, net.mixed_width, rows, dim);
  commit_copies();
  const Prepared to(p.scratch, int64_t{blockIdx.x} * net.value_heads + head, dim);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (warp == 0) {
    // Two rows a lane: sums up to each.
    float logs[2];
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * lane + i;
      const int64_t at = (first_row + row) * net.value_heads + head;
      logs[i] = row < rows ? __ldcg(p.kept + at) : 0.0f;
      shared.written[row] = row < rows ? __ldcg(p.written + at) : 0.0f;
    }
    float up_to = logs[0] + logs[1];
    for (int apart = 1; apart < 32; apart *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, up_to, apart);
      if (lane >= apart) up_to += other;
    }
    const float all = __shfl_sync(0xffffffffu, up_to, 31), first = up_to - logs[1];
    const float2 kept = make_float2(expf(first), expf(up_to));
    shared.logs[2 * lane] = first, shared.logs[2 * lane + 1] = up_to;
    shared.kept[2 * lane] = kept.x, shared.kept[2 * lane + 1] = kept.y;
    reinterpret_cast<float2*>(to.kept)[lane] = kept;
    reinterpret_cast<float2*>(to.left)[lane] = make_float2(expf(all - first), expf(all - up_to));
  }
  wait_for_copies<0>();
  __syncthreads();

  {
    const int row = warp % 4 * 16, column = warp / 4 * 32;
    float of_keys[4][4] = {}, of_queries[4][4] = {};
    const auto b = [&](int k, int n) { return shared.keys[(column + n) * kWide + k]; };
    tf32::multiply(
        of_keys, kMostDim, [&](int m, int k) { return shared.keys[(row + m) * kWide + k]; }, b);
    tf32::multiply(
        of_queries, kMostDim, [&](int m, int k) { return shared.queries[(row + m) * kWide + k]; }, b);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + g + i / 2 * 8, c = column + 8 * tile + 2 * t + i % 2;
        const float ratio = c <= r ? expf(shared.logs[r] - shared.logs[c]) : 0.0f;
        shared.lower[r * kSquare + c] = c < r ? shared.written[r] * ratio * of_keys[tile][i] : 0.0f;
        to.shares[r * kRows + c] = c <= r ? ratio * of_queries[tile][i] : 0.0f;
      }
    }
  }
  // A thread a column: of the values, or of the keys.
  const int d = threadIdx.x % kMostDim;
  const bool of_values = threadIdx.x < kMostDim;
  float x[kRows];
  const float* const value = convolved + 2 * net.key_width + head * dim + d;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    x[r] = of_values ? (r < rows && d < dim ? __ldcg(value + int64_t{r} * net.mixed_width) : 0.0f)
                     : shared.keys[r * kWide + d] * shared.kept[r];
    x[r] *= shared.written[r];
  }
  __syncthreads();
  solve(shared.lower, x);
  if (d >= dim) return;
  float* const solved = of_values ? to.values : to.keys;
#pragma unroll
  for (int r = 0; r < kRows; ++r) solved[r * dim + d] = x[r];
}

struct PassShared {
  float solved[kRows * kWide], queries[kRows * kWide], keys[kRows * kAcross], shares[kRows * kSquare];
  float writes[kRows * kNarrow];    // U
  float state[kMostDim * kNarrow];  // S
  float kept[kRows], left[kRows];
};

/// Grid (groups of columns, value heads). `last`: of the chunk.
__global__ void __launch_bounds__(kThreads, 1)
    pass_kernel(const __grid_constant__ DeltaParams p, const __grid_constant__ DeltaSizes net, BlockRun run,
                bool last) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<PassShared*>(memory);
  wait_for_previous();
  let_next_start();
  const DeviceChunk& chunk = p.tables.chunks[run.chunk];
  const int head = blockIdx.y, dim = net.dim, first_column = blockIdx.x * kColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = warp % 4 * 16, column = warp / 4 * 16;  // of a block's rows, and of the columns
  float* const tail = chunk.state + p.state;
  if (last)
    keep_tail(p, net, chunk, tail, (blockIdx.y * gridDim.x + blockIdx.x) * kThreads + threadIdx.x,
              gridDim.x * gridDim.y * kThreads);
  float* const state = tail + net.tail + static_cast<int64_t>(head) * dim * dim + first_column;
  const bool begin = begins(chunk) && run.first == 0;
  for (int i = threadIdx.x; i < kMostDim * kColumns; i += kThreads) {
    const int k = i / kColumns, c = i % kColumns;
    const bool there = !begin && k < dim && first_column + c < dim;
    shared.state[k * kNarrow + c] = there ? __ldcg(state + static_cast<int64_t>(k) * dim + c) : 0.0f;
  }
  const int blocks = (run.end - run.first + kRows - 1) / kRows;
  const auto prepared = [&](int block) { return Prepared(p.scratch, int64_t{block} * net.value_heads + head, dim); };
  const auto rows_of = [&](int block) { return min(kRows, run.end - run.first - block * kRows); };
  const auto query_of = [&](int block) {
    return p.convolved + static_cast<int64_t>(chunk.first_row + run.first + block * kRows) * net.mixed_width +
           net.key_head(head) * dim;
  };
  const auto copy_first = [&](int block) {
    copy_head<kWide>(shared.solved, prepared(block).keys, dim, kRows, dim);
    copy_head<kWide>(shared.queries, query_of(block), net.mixed_width, rows_of(block), dim);
    commit_copies();
  };
  const auto copy_second = [&](int block) {
    const Prepared from = prepared(block);
    copy_head<kAcross>(shared.keys, query_of(block) + net.key_width, net.mixed_width, rows_of(block), dim);
    for (int i = threadIdx.x; i < kRows * kRows / 4; i += kThreads) {
      const int r = i / (kRows / 4), c = i % (kRows / 4) * 4;
      copy_async(shared_address(shared.shares + r * kSquare + c), from.shares + r * kRows + c, true);
    }
    if (threadIdx.x < kRows / 2) {
      float* const to = threadIdx.x < kRows / 4 ? shared.kept : shared.left;
      const int i = threadIdx.x % (kRows / 4) * 4;
      copy_async(shared_address(to + i), (threadIdx.x < kRows / 4 ? from.kept : from.left) + i, true);
    }
    commit_copies();
  };
  copy_first(0);
  copy_second(0);
  wait_for_copies<1>();
  __syncthreads();

  for (int block = 0; block < blocks; ++block) {
    const float* const values = prepared(block).values + first_column;
    float writes[2][4], reads[2][4] = {}, known[2][4] = {};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = column + 8 * tile + 2 * t;
        float2 two = {0, 0};
        if (first_column + c < dim) {
          two = __ldcg(reinterpret_cast<const float2*>(values + (row + g + 8 * half) * dim + c));
        }
        writes[tile][2 * half] = two.x, writes[tile][2 * half + 1] = two.y;
      }
    }
    const auto of_state = [&](int k, int n) { return shared.state[k * kNarrow + column + n]; };
    tf32::multiply(
        known, kMostDim, [&](int m, int k) { return shared.solved[(row + m) * kWide + k]; }, of_state);
    tf32::multiply(
        reads, kMostDim, [&](int m, int k) { return shared.queries[(row + m) * kWide + k]; }, of_state);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared.writes[(row + g + i / 2 * 8) * kNarrow + column + 8 * tile + 2 * t + i % 2] =
            __fsub_rn(writes[tile][i], known[tile][i]);
      }
    }
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < blocks) copy_first(block + 1);

#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) reads[tile][i] = __fmul_rn(reads[tile][i], shared.kept[row + g + i / 2 * 8]);
    }
    tf32::multiply(
        reads, kRows, [&](int m, int k) { return shared.shares[(row + m) * kSquare + k]; },
        [&](int k, int n) { return shared.writes[k * kNarrow + column + n]; });
    const int first = run.first + block * kRows;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = first + row + g + 8 * half, c = first_column + column + 8 * tile + 2 * t;
        if (r >= run.end || c >= dim) continue;
        *reinterpret_cast<float2*>(p.out + static_cast<int64_t>(chunk.first_row + r) * net.value_width + head * dim +
                                   c) = make_float2(reads[tile][2 * half], reads[tile][2 * half + 1]);
      }
    }
    // 16 rows of S a warp, all columns.
    const float all = shared.kept[kRows - 1];
    float next[kColumns / 8][4];
    const auto own = [&](int tile, int i) -> float& {
      return shared.state[(16 * warp + g + i / 2 * 8) * kNarrow + 8 * tile + 2 * t + i % 2];
    };
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) next[tile][i] = __fmul_rn(all, own(tile, i));
    }
    tf32::multiply(
        next, kRows, [&](int m, int k) { return shared.keys[k * kAcross + 16 * warp + m]; },
        [&](int k, int n) { return __fmul_rn(shared.left[k], shared.writes[k * kNarrow + n]); });
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) own(tile, i) = next[tile][i];
    }
    wait_for_copies<0>();
    __syncthreads();
    if (block + 1 < blocks) copy_second(block + 1);
  }
  for (int i = threadIdx.x; i < dim * kColumns; i += kThreads) {
    const int k = i / kColumns, c = i % kColumns;
    if (first_column + c < dim) state[static_cast<int64_t>(k) * dim + c] = shared.state[k * kNarrow + c];
  }
}

constexpr const char* kWhat = "the delta rule of a chunk";

void prepare() {
  static const cudaError_t allowed = [] {
    const cudaError_t first = cudaFuncSetAttribute(solve_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(sizeof(SolveShared)));
    const cudaError_t second = cudaFuncSetAttribute(pass_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(sizeof(PassShared)));
    return first != cudaSuccess ? first : second;
  }();
  check(allowed, kWhat);
}

}  // namespace

bool chunks_at_once(const DeltaNet& net) {
  return net.head_dim <= kMostDim && shared_memory_limit() >= static_cast<int>(sizeof(PassShared));
}

int64_t delta_scratch_bytes(const DeltaNet& net) {
  return static_cast<int64_t>(sizeof(float)) * Prepared::floats(net.head_dim) * net.value_heads;
}

void launch_delta_chunk(const DeltaParams& p, int chunk, int rows, cudaStream_t stream) {
  prepare();
  const DeltaSizes net(p.net);
  const auto most = static_cast<int>(std::min<int64_t>(1 << 20, p.scratch_bytes / delta_scratch_bytes(p.net)));
  const int blocks = (rows + kRows - 1) / kRows, turns = (blocks + most - 1) / most;
  const int each = (blocks + turns - 1) / turns * kRows;
  for (int first = 0; first < rows; first += each) {
    const BlockRun run{chunk, first, std::min(rows, first + each)};
    const dim3 grid((run.end - first + kRows - 1) / kRows, net.value_heads);
    launch(kWhat, Start::Early, solve_kernel, grid, dim3(kThreads), sizeof(SolveShared), stream, p, net, run);
    launch(kWhat, Start::Early, pass_kernel, dim3((net.dim + kColumns - 1) / kColumns, net.value_heads), dim3(kThreads),
           sizeof(PassShared), stream, p, net, run, run.end == rows);
  }
}

}  // namespace tidal::cuda
