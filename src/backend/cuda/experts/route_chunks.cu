// Which experts the rows of long chunks go through: a block has rows that lie in shared memory, normed, and goes
// through the router once for all of them, a warp four experts at a time.
#include "backend/cuda/experts/route_device.cuh"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kWarps = kRowThreads / 32, kAtOnce = 4;

__device__ uint64_t highest_of_warp(uint64_t key) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(key), apart);
    key = other > key ? other : key;
  }
  return key;
}

/// The experts of a row from its logits [count], and that of the switch behind them. By one warp, one expert a round.
__device__ void choose(const RouteParams& p, int64_t row, const float* logits) {
  const int count = p.experts.count, used = p.experts.used, lane = threadIdx.x % 32;
  uint64_t below = ~uint64_t{0};
  int expert = 0;
  for (int k = 0; k < used; ++k) {
    uint64_t highest = 0;
    for (int e = lane; e < count; e += 32) {
      const uint64_t key = key_of(logits[e], e);
      if (key < below && key > highest) highest = key;
    }
    below = highest_of_warp(highest);
    if (lane == k) expert = static_cast<int>(0xffffffffu - static_cast<uint32_t>(below));
  }
  write_choice(p, row, logits, logits[count], expert);
}

/// R rows a block. Shared memory: [R, width] normed rows, [R, count + 1] logits.
template <int R>
__global__ void __launch_bounds__(kRowThreads) route_chunks_kernel(const __grid_constant__ RouteParams p) {
  extern __shared__ float4 normed[];
  const int first = blockIdx.x * R, groups = p.width / 4, count = p.experts.count;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, end = count + (p.shared_switch ? 1 : 0);
  auto* const logits = reinterpret_cast<float*>(normed + R * groups);
  wait_for_previous();
  let_next_start();
  for (int r = warp; r < R; r += kWarps) {
    float4* const to = normed + r * groups;
    const bool there = first + r < p.rows;
    const auto* x = reinterpret_cast<const float4*>(p.x + static_cast<int64_t>(there ? first + r : first) * p.width);
    float squares = 0;
#pragma unroll 8
    for (int i = lane; i < groups; i += 32) {
      const float4 v = there ? __ldcg(x + i) : make_float4(0, 0, 0, 0);
      squares = add_squares(v, squares);
      to[i] = v;
    }
    if (!p.norm) continue;
    const float factor = 1.0f / sqrtf(tree_sum<1, 16>(squares) / static_cast<float>(p.width) + p.epsilon);
    for (int i = lane; i < groups; i += 32) {
      const float4 v = to[i], w = __ldg(reinterpret_cast<const float4*>(p.norm) + i);
      to[i] = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
    }
  }
  __syncthreads();
  for (int e = warp * kAtOnce; e < end; e += kWarps * kAtOnce) {
    const float4* w[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int own = min(e + k, end - 1);
      w[k] = reinterpret_cast<const float4*>(own < count ? p.router + static_cast<int64_t>(own) * p.width
                                                         : p.shared_switch);
    }
    float sums[R][kAtOnce] = {};
    float4 next[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) next[k] = lane < groups ? __ldg(w[k] + lane) : make_float4(0, 0, 0, 0);
    for (int i = lane; i < groups; i += 32) {
      float4 now[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        now[k] = next[k];
        if (i + 32 < groups) next[k] = __ldg(w[k] + i + 32);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float4 a = normed[r * groups + i];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          sums[r][k] = __fmaf_rn(a.x, now[k].x, sums[r][k]);
          sums[r][k] = __fmaf_rn(a.y, now[k].y, sums[r][k]);
          sums[r][k] = __fmaf_rn(a.z, now[k].z, sums[r][k]);
          sums[r][k] = __fmaf_rn(a.w, now[k].w, sums[r][k]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        float sum = tree_sum<1, 16>(sums[r][k]);
        if (p.bias && e + k < count) sum = __fadd_rn(sum, __ldg(p.bias + e + k));
        if (lane == 0 && e + k < end) logits[r * (count + 1) + e + k] = sum;
      }
    }
  }
  __syncthreads();
  for (int r = warp; r < R && first + r < p.rows; r += kWarps) choose(p, first + r, logits + r * (count + 1));
}

constexpr const char* kWhat = "a router";

template <int R>
bool launch_rows(const RouteParams& p, cudaStream_t stream) {
  const int64_t bytes = int64_t{4} * R * (p.width + p.experts.count + 1);
  if (bytes > shared_memory_limit() - 1024) return false;
  static const cudaError_t allowed = cudaFuncSetAttribute(
      route_chunks_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared_memory() - 1024);
  check(allowed, kWhat);
  launch(kWhat, Start::Early, route_chunks_kernel<R>, dim3((p.rows + R - 1) / R), dim3(kRowThreads),
         static_cast<size_t>(bytes), stream, p);
  return true;
}

}  // namespace

void launch_route_chunks(const RouteParams& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  // A block goes through the whole router, so few rows are spread; the sums of a row are the same.
  const int each = (p.rows + multiprocessors() - 1) / multiprocessors();
  if (each > 8 && launch_rows<16>(p, stream)) return;
  if (each > 4 && launch_rows<8>(p, stream)) return;
  if (each > 2 && launch_rows<4>(p, stream)) return;
  if (each > 1 && launch_rows<2>(p, stream)) return;
  if (launch_rows<1>(p, stream)) return;
  launch_route(p, stream);
}

}  // namespace tidal::cuda
