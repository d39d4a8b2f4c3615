// From raw products to q and the cache: bias, norm, rotation.
#include <cuda_fp16.h>

#include <string>

#include "backend/cuda/products/elementwise.h"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kBlock = 64;  // positions of a block of the cache
constexpr int kHeads = 4;   // of a block of threads

template <int N>
__device__ void load(const float* from, float (&to)[N]) {
  if constexpr (N == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = *from;
  }
}

template <int N>
__device__ void store(const float (&from)[N], float* to) {
  if constexpr (N == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  } else {
    *to = from[0];
  }
}

template <int N>
__device__ void store(const float (&from)[N], __nv_bfloat16* to) {
  if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(bf16_pair(from[0], from[1]), bf16_pair(from[2], from[3]));
  } else {
    *to = __float2bfloat16_rn(from[0]);
  }
}

/// A head in a warp's registers, as rope_append_kernel() has it, to the key or the value of a row of 8 bits: bit for
/// bit as write_kv_row() has it. All lanes call it.
template <int N, int kGroups>
__device__ void store_q8(const float (&own)[kGroups][N], std::byte* row, int dim, bool value) {
  constexpr int kLanes = kKvScaleBlock / N;  // of one scale
  const int lane = threadIdx.x, scales = (dim + kKvScaleBlock - 1) / kKvScaleBlock;
  std::byte* const codes = row + (value ? dim : 0);
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    const int d = (k * 32 + lane) * N;
    if (k * 32 * N >= dim) break;  // for all lanes
    uint32_t top_bits = 0;         // as integers what is no number is above all others
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (d < dim) top_bits = max(top_bits, __float_as_uint(own[k][j]) & 0x7fffffffu);
    }
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2) {
      top_bits = max(top_bits, __shfl_xor_sync(0xffffffffu, top_bits, apart));
    }
    if (d >= dim) continue;
    const float step = __fdiv_rn(__uint_as_float(top_bits), 127.0f);
    unsigned short scale = top_bits >= 0x7f800000u ? 0x7e00 : __half_as_ushort(__float2half_rn(step));
    if (scale >= 0x7c00) scale = 0x7e00;
    const float inverse = scale == 0 || scale == 0x7e00 ? 0.0f : __fdiv_rn(1.0f, step);
    uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int code = inverse == 0 ? 0 : __float2int_rn(__fmul_rn(own[k][j], inverse));
      four |= (static_cast<uint32_t>(code) & 0xffu) << 8 * j;
    }
    if constexpr (N == 4) {
      *reinterpret_cast<uint32_t*>(codes + d) = four;
    } else {
      codes[d] = static_cast<std::byte>(four);
    }
    if (lane % kLanes == 0) {
      *reinterpret_cast<unsigned short*>(row + 2 * dim + 2 * ((value ? scales : 0) + d / kKvScaleBlock)) = scale;
    }
  }
}

/// A warp's head of q (0), k (1) or v (2).
struct Head {
  int which, index;
};
__device__ Head head_of(const RopeAppendParams& p) {
  const int all = blockIdx.x * kHeads + threadIdx.y;
  if (all < p.heads) return {0, all};
  return all < p.heads + p.kv_heads ? Head{1, all - p.heads} : Head{2, all - p.heads - p.kv_heads};
}

/// A warp a head of at most kMostDim elements, a lane every 32nd N of them; the grid is (heads of q, k and v in fours,
/// rows). What is read is asked for at once.
template <int N, int kMostDim>
__global__ void __launch_bounds__(32 * kHeads) rope_append_kernel(const __grid_constant__ RopeAppendParams p) {
  constexpr int kGroups = kMostDim / 32 / N;  // of a lane, at most
  extern __shared__ __align__(16) float heads[];
  wait_for_previous();
  let_next_start();  // only now: attention, which comes next, relies on it
  const int row = blockIdx.y, lane = threadIdx.x, dim = p.head_dim, pairs = p.dims / 2;
  const auto [which, head] = head_of(p);
  if (head >= p.kv_heads && which == 2) return;
  const float* const whole = (which == 0   ? p.q_raw
                              : which == 1 ? p.k_raw
                                           : p.v_raw) +
                             static_cast<int64_t>(row) * (which == 0 ? p.q_stride : p.kv_stride);
  const float *const from = whole + head * dim, *const bias = p.bias[which];
  const float* norm = which == 0 ? p.q_norm : which == 1 ? p.k_norm : nullptr;
  const int rotated = which < 2 ? p.dims : 0, slot = which > 0 ? __ldcg(p.slots + row) : 0;
  const float2* const angles = p.angles + static_cast<int64_t>(row) * pairs;
  const auto first_of = [&](int k) { return (k * 32 + lane) * N; };

  const float* const units =
      p.key_units && which < 2 ? p.key_units + (which == 0 ? head / p.group : head) * dim : nullptr;

  float own[kGroups][N], unit[kGroups][N], squares = 0;
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    if (const int d = first_of(k); d < dim) load<N>(from + d, own[k]);
    if (const int d = first_of(k); units && d < dim) load<N>(units + d, unit[k]);
  }
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    const int d = first_of(k);
    if (d >= dim) break;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (bias) own[k][j] += __ldg(bias + head * dim + d + j);
      squares = fmaf(own[k][j], own[k][j], squares);
    }
  }
  if (norm || (which == 2 && p.norms_values)) {
    int count = dim;
    if (norm && p.norms_rows) {  // every head for itself: the others' values are in the L2
      count *= which == 0 ? p.heads : p.kv_heads;
      squares = 0;
      for (int d = lane; d < count; d += 32) {
        const float value = __ldcg(whole + d) + (bias ? __ldg(bias + d) : 0.0f);
        squares = fmaf(value, value, squares);
      }
      norm += head * dim;
    }
    const float factor = 1.0f / sqrtf(tree_sum<1, 16>(squares) / static_cast<float>(count) + p.epsilon);
#pragma unroll
    for (int k = 0; k < kGroups; ++k) {
      const int d = first_of(k);
#pragma unroll
      for (int j = 0; j < N && d < dim; ++j) own[k][j] = own[k][j] * factor * (norm ? __ldg(norm + d + j) : 1.0f);
    }
  }
  float* const values = heads + threadIdx.y * dim;
  if (rotated > 0) {
#pragma unroll
    for (int k = 0; k < kGroups; ++k) {
      if (const int d = first_of(k); d < dim) store<N>(own[k], values + d);
    }
    __syncwarp();
  }

  float* const q = p.q + (static_cast<int64_t>(row) * p.heads + head) * dim;
  std::byte* const cache =
      p.kv + ((static_cast<int64_t>(slot / kBlock) * p.kv_heads + head) * kBlock + slot % kBlock) * p.row_bytes;
  auto* const rounded = reinterpret_cast<__nv_bfloat16*>(cache) + (which == 2 ? dim : 0);
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    const int d = first_of(k);
    if (d >= dim) break;
    if (d < rotated) {
      // N elements are of one half, or whole pairs.
      const bool upper = p.halves && d >= pairs;
      float other[N];
      if (p.halves) {
        load<N>(values + (upper ? d - pairs : d + pairs), other);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) other[j] = N == 1 ? values[d ^ 1] : own[k][j ^ 1];
      }
      float turned[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float2 angle = __ldcg(angles + (p.halves ? d + j - (upper ? pairs : 0) : (d + j) / 2));
        const float across = __fmul_rn(other[j], angle.y);  // as the skinny product rotates
        const bool first = p.halves ? !upper : (d + j) % 2 == 0;
        turned[j] = __fmaf_rn(own[k][j], angle.x, first ? -across : across);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) own[k][j] = turned[j];
    }
    if (which == 0) {
#pragma unroll
      for (int j = 0; j < N; ++j) own[k][j] *= units ? p.query_scale * unit[k][j] : p.query_scale;
      store<N>(own[k], q + d);
    } else if (p.type == KvType::Bf16) {
      store<N>(own[k], rounded + d);
    } else if (units) {
#pragma unroll
      for (int j = 0; j < N; ++j) own[k][j] *= __frcp_rn(unit[k][j]);  // exact, of a power of two
    }
  }
  if (which > 0 && p.type == KvType::Q8) store_q8(own, cache, dim, which == 2);
}

}  // namespace

void launch_rope_append(const RopeAppendParams& p, cudaStream_t stream) {
  if (p.rows == 0) return;
  if (p.head_dim > kMostHeadDim) fail_with("cuda: no rotation of heads of " + std::to_string(p.head_dim) + " elements");
  const bool fours =
      p.head_dim % 4 == 0 && p.dims % (p.halves ? 8 : 4) == 0 && p.q_stride % 4 == 0 && p.kv_stride % 4 == 0;
  const dim3 grid((p.heads + 2 * p.kv_heads + kHeads - 1) / kHeads, p.rows);
  const auto kernel = !fours              ? rope_append_kernel<1, kMostHeadDim>
                      : p.head_dim <= 256 ? rope_append_kernel<4, 256>
                                          : rope_append_kernel<4, kMostHeadDim>;
  launch("rotation and append", Start::Early, kernel, grid, dim3(32, kHeads), sizeof(float) * kHeads * p.head_dim,
         stream, p);
}

}  // namespace tidal::cuda
