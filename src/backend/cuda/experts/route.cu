#include <algorithm>

#include "backend/cuda/experts/route_device.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kWarps = kRowThreads / 32;

/// The experts of a row from its logits [count] and that of the switch behind them. `keys` [count] and `logits` [count]
/// are shared memory. By all threads.
__device__ void choose(const RouteParams& p, int row, uint64_t* keys, float* logits, int* chosen) {
  const int count = p.experts.count, used = p.experts.used;
  const float* from = p.logits + static_cast<int64_t>(row) * (count + 1);
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += kRowThreads) {
    logits[e] = __ldcg(from + e);
    keys[e] = key_of(logits[e], e);
  }
  __syncthreads();
  // Each expert's rank at once: no round waits for another.
  for (int e = threadIdx.x; e < count; e += kRowThreads) {
    const uint64_t own = keys[e];
    int rank = 0;
#pragma unroll 8
    for (int other = 0; other < count; ++other) rank += keys[other] > own;
    if (rank < used) chosen[rank] = e;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  write_choice(p, row, logits, __ldcg(from + count), static_cast<int>(threadIdx.x) < used ? chosen[threadIdx.x] : 0);
}

/// A block has R rows and every gridDim.x-th eight experts; the last one of a row's chooses. Shared memory: [R, width]
/// rows times the norm's weight; [count] keys; [count] logits.
template <int R>
__global__ void __launch_bounds__(kRowThreads) route_kernel(const __grid_constant__ RouteParams p) {
  extern __shared__ float4 weighted[];
  __shared__ float warps[kWarps];
  __shared__ int chosen[kMostChosen];
  __shared__ uint32_t last;
  const int first = blockIdx.y * R, rows = min(R, p.rows - first), groups = p.width / 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = p.experts.count;
  const int end = count + (p.shared_switch ? 1 : 0);
  const auto matrix_row = [&](int e) {
    return reinterpret_cast<const float4*>(e < count ? p.router + static_cast<int64_t>(e) * p.width : p.shared_switch);
  };
  // What depends on nothing is on its way before the kernel waits.
  constexpr int kAhead = R == 1 ? 16 : 4;
  float4 ahead[kAhead];
  const int first_expert = blockIdx.x * kWarps + warp;
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const bool there = first_expert < end && k * 32 + lane < groups;
    ahead[k] = there ? __ldg(matrix_row(first_expert) + k * 32 + lane) : make_float4(0, 0, 0, 0);
  }
  wait_for_previous();
  let_next_start();
  float factors[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    factors[r] = 1;
    if (r >= rows) break;
    const auto* x = reinterpret_cast<const float4*>(p.x + static_cast<int64_t>(first + r) * p.width);
    float squares = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < groups; i += kRowThreads) {
      const float4 v = __ldcg(x + i);
      squares = add_squares(v, squares);
      const float4 w = p.norm ? __ldg(reinterpret_cast<const float4*>(p.norm) + i) : make_float4(1, 1, 1, 1);
      weighted[r * groups + i] = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
    }
    if (!p.norm) continue;
    factors[r] = block_norm_factor(squares, warps, p.width, p.epsilon);
    __syncthreads();  // before the next row's sums
  }
  __syncthreads();
  for (int e = first_expert; e < end; e += gridDim.x * kWarps) {
    const float4* w = matrix_row(e);
    float sums[R] = {};
    const auto add = [&](int i, const float4& b) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= rows) break;
        const float4 a = weighted[r * groups + i];
        sums[r] = __fmaf_rn(a.x, b.x, sums[r]);
        sums[r] = __fmaf_rn(a.y, b.y, sums[r]);
        sums[r] = __fmaf_rn(a.z, b.z, sums[r]);
        sums[r] = __fmaf_rn(a.w, b.w, sums[r]);
      }
    };
    int i = lane;
    if (e == first_expert) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k, i += 32) {
        if (i < groups) add(i, ahead[k]);
      }
    }
#pragma unroll 4
    for (; i < groups; i += 32) add(i, __ldg(w + i));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float sum = __fmul_rn(tree_sum<1, 16>(sums[r]), factors[r]);
      if (p.bias && e < count) sum = __fadd_rn(sum, __ldg(p.bias + e));
      if (lane == 0 && r < rows) p.logits[static_cast<int64_t>(first + r) * (count + 1) + e] = sum;
    }
  }
  if (!arrives_last(p.arrived + blockIdx.y, gridDim.x, &last)) return;
  auto* keys = reinterpret_cast<uint64_t*>(weighted + R * groups);
  for (int r = 0; r < rows; ++r) choose(p, first + r, keys, reinterpret_cast<float*>(keys + count), chosen);
}

template <int R>
int64_t shared_bytes(const RouteParams& p) {
  return static_cast<int64_t>(sizeof(float)) * R * p.width +
         static_cast<int64_t>(sizeof(uint64_t) + sizeof(float)) * p.experts.count;
}

template <int R>
void launch_rows(const RouteParams& p, int blocks, cudaStream_t stream) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(route_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared_memory() - 1024);
  check(allowed, "a router");
  launch("a router", Start::Early, route_kernel<R>, dim3(blocks, (p.rows + R - 1) / R), dim3(kRowThreads),
         static_cast<size_t>(shared_bytes<R>(p)), stream, p);
}

}  // namespace

void launch_route(const RouteParams& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  constexpr int kRows = 4;
  if (p.few || shared_bytes<kRows>(p) > shared_memory_limit() - 1024) {
    launch_rows<1>(p, (p.experts.count + kWarps) / kWarps, stream);
  } else {
    launch_rows<kRows>(p, 1, stream);
  }
}

}  // namespace tidal::cuda
