// The kernel behind matmul_skinny.h; what differs between the products is in an Epilogue.
//
// Tensor cores multiply 16 rows of W with up to 8 NT rows of x. The columns of W are cut into units of 64, unit u
// belongs to warp u mod 8; a warp adds its units in ascending order, then the 8 sums are added in the order of the
// warps. That order is all that decides a result's bits, and no variant of the kernel changes it.
//
// A lane needs 16 bytes each of two rows of W for two steps of the tensor core, if the columns that it holds are taken
// for those that the instruction calls its own: the same permutation of columns applies to W and x, so nothing is
// shuffled. Each lane copies what it will need itself into a ring in shared memory (cp.async), D slots ahead: no
// barrier, no bank conflict, and 16 D KiB of W in flight a multiprocessor. The first slots are asked for before the
// kernel waits for the one before.
#pragma once

#include <cuda_bf16.h>

#include <type_traits>
#include <utility>

#include "backend/cuda/launch.h"
#include "backend/cuda/matmul_skinny.h"
#include "backend/cuda/row_norm.cuh"

namespace tidal::cuda::skinny {

inline constexpr int kWarps = kRowThreads / 32;
inline constexpr int kUnit = 64;  // columns

/// Shared memory of one variant, in bytes; [..] is what lies there, in this order.
template <int M, int NT, int D, bool kStream>
struct Layout {
  static constexpr int kXSlots = D / M;                 // units of x
  static constexpr int kBuffers = M * NT >= 4 ? 1 : 2;  // of sums: with two, a tile needs one barrier
  static constexpr int kSums = M * NT * 128;            // of one warp
  static constexpr int kRing = kWarps * D * 128 * 16;   // [warp][D][4 pieces][lane] 16 bytes
  static constexpr int kXRing = kStream ? kWarps * kXSlots * NT * 64 * 16 : 0;  // [warp][slot][NT][2][lane] 16 bytes
  static constexpr int kReduce = kBuffers * kWarps * kSums * 4;
  static constexpr int kFactors = 8 * NT * 4;
  static constexpr int kSquares = kFusedRows * kWarps * 4;
  static constexpr int kFixed = kRing + kXRing + kReduce + kFactors + kSquares;
};

inline int units_of(int cols) { return (cols + kUnit - 1) / kUnit; }
/// Elements from one row of x to the next in shared memory: two rows are half a bank cycle apart.
__host__ __device__ inline int x_stride(int units) { return units * kUnit + 32; }

/// Lets a kernel have all the shared memory that there is.
inline cudaError_t allow_shared_memory(const void* kernel) {
  const cudaError_t code =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit());
  if (code != cudaSuccess || !skinny_tuning().carveout) return code;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
/// 16 bytes to shared memory, zeros where `inside` is false (nothing is read then).
__device__ inline void copy_16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// One step of the tensor core: rows g and g + 8 of W hold `a` and `b`, x holds `x`.
__device__ inline void multiply(float4& sum, uint32_t a0, uint32_t b0, uint32_t a1, uint32_t b1, uint32_t x0,
                                uint32_t x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
      : "r"(a0), "r"(b0), "r"(a1), "r"(b1), "r"(x0), "r"(x1));
}

/// Asks for part `part` of `parts` of what comes next.
__device__ inline void prefetch(const Prefetch& next, int part, int parts, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (next.bytes[i] == 0) continue;
    const int64_t share = (next.bytes[i] / parts + 127) / 128 * 128;
    const int64_t begin = share * part, end = min(begin + share, next.bytes[i]);
    const char* data = static_cast<const char*>(next.data[i]);
#if __CUDA_ARCH__ >= 900
    if (lane == 0 && begin < end) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(data + begin),
                   "r"(static_cast<uint32_t>(end - begin) & ~15u)
                   : "memory");
    }
#else
    for (int64_t at = begin + lane * 128; at < end; at += 32 * 128) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(data + at) : "memory");
    }
#endif
  }
}

/// Rounds R or fewer rows of float32 into `xs`, B groups of columns at a time so that loads overlap.
template <int R, int B>
__device__ inline void round_rows(const SkinnyInput& in, int rows, int cols, __nv_bfloat16* xs, int stride,
                                  float* squares) {
  const int groups = cols / 4;
  const float4* source[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = r < rows ? (in.row_ids ? in.row_ids[r] : r) : 0;
    source[r] = reinterpret_cast<const float4*>(in.x + static_cast<int64_t>(row) * cols);
  }
  float sums[R] = {};
  for (int first = threadIdx.x; first < groups; first += B * kRowThreads) {
    float4 v[B][R], w[B];
#pragma unroll
    for (int b = 0; b < B; ++b) {
      const int i = first + b * kRowThreads;
      w[b] = make_float4(1, 1, 1, 1);
      if (i < groups && in.norm) w[b] = __ldg(reinterpret_cast<const float4*>(in.norm) + i);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        v[b][r] = make_float4(0, 0, 0, 0);
        if (i < groups && r < rows) v[b][r] = __ldcg(source[r] + i);
      }
    }
#pragma unroll
    for (int b = 0; b < B; ++b) {
      const int i = first + b * kRowThreads;
      if (i >= groups) break;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= rows) break;
        sums[r] = add_squares(sums[r], v[b][r]);
        auto* to = reinterpret_cast<__nv_bfloat162*>(xs + r * stride + 4 * i);
        to[0] = __floats2bfloat162_rn(v[b][r].x * w[b].x, v[b][r].y * w[b].y);
        to[1] = __floats2bfloat162_rn(v[b][r].z * w[b].z, v[b][r].w * w[b].w);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float sum = warp_sum(sums[r]);
    if (threadIdx.x % 32 == 0) squares[r * kWarps + threadIdx.x / 32] = sum;
  }
}

/// x of all rows in shared memory, and the factors.
template <int NT>
__device__ inline void load_x(const SkinnyInput& in, int rows, int cols, int units, __nv_bfloat16* xs, float* factors,
                              float* squares) {
  const int stride = x_stride(units), thread = threadIdx.x;
  const int padding = units * kUnit - cols;  // columns: zeros, as those of W
  for (int i = thread; i < rows * padding; i += kRowThreads) {
    xs[i / padding * stride + cols + i % padding] = __float2bfloat16_rn(0.0f);
  }
  if (in.x) {
    if (rows == 1) {
      round_rows<1, 4>(in, rows, cols, xs, stride, squares);
    } else {
      round_rows<kFusedRows, 2>(in, rows, cols, xs, stride, squares);
    }
  } else {
    const int pieces = cols / 8;
    for (int i = thread; i < rows * pieces; i += kRowThreads) {
      copy_16(xs + i / pieces * stride + i % pieces * 8, in.rounded + static_cast<int64_t>(i) * 8, true);
    }
    commit();
    wait_copies<0>();
  }
  __syncthreads();
  if (thread < rows) {
    float factor = 1;
    if (in.x) {
      if (in.norm) factor = norm_factor(squares + thread * kWarps, cols, in.epsilon);
    } else if (in.factors) {
      factor = __ldcg(in.factors + thread);
    }
    factors[thread] = factor;  // read behind the barrier before the first tile's end
  }
}

/// Epilogue E: Params, kM (tiles of 16 rows worked on together), row(params, tile, m, r) -> that row of W,
/// kItems (results of a tile, in units of NT * 128), Operands load(params, tile, item) before the product and
/// store(params, tile, item, sums, factor, operands) behind it. `E::Item` says which result a thread has.
template <class E, int NT, int D, bool kStream>
__global__ void __launch_bounds__(kRowThreads, NT == 1 && !kStream ? 2 : 1)
    skinny_kernel(const __grid_constant__ typename E::Params p, int tiles, int units, bool late) {
  constexpr int M = E::kM;
  using L = Layout<M, NT, D, kStream>;
  static_assert(!kStream || D % M == 0);
  extern __shared__ uint4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint4* ring = shared + warp * D * 128 + lane;
  uint4* x_ring = reinterpret_cast<uint4*>(base + L::kRing) + warp * L::kXSlots * NT * 64 + lane;
  float* reduce = reinterpret_cast<float*>(base + L::kRing + L::kXRing);
  float* factors = reinterpret_cast<float*>(base + L::kRing + L::kXRing + L::kReduce);
  float* squares = factors + 8 * NT;
  auto* xs = reinterpret_cast<__nv_bfloat16*>(base + L::kFixed);

  const int rows = p.rows, cols = p.cols;
  const int own = units > warp ? (units - warp + kWarps - 1) / kWarps : 0;  // units of this warp
  const int my_tiles = (tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / gridDim.x;

  // The copying end of the ring.
  int left = my_tiles * own * M, to_tile = blockIdx.x, to_unit = 0, to_slot = 0, x_slot = 0;
  bool prefetched = false;
  const __nv_bfloat16 *low[M], *high[M];  // rows g and g + 8 of the tile that is copied
  const auto aim = [&] {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      low[m] = E::row(p, to_tile, m, g);
      high[m] = E::row(p, to_tile, m, g + 8);
    }
  };
  const auto copy_x = [&](int unit, int slot) {
    if constexpr (kStream) {
      const int col = (unit * kWarps + warp) * kUnit + t * 8;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int token = n * 8 + g;
        const __nv_bfloat16* from = p.in.rounded + static_cast<int64_t>(token < rows ? token : 0) * cols;
        uint4* to = x_ring + (slot * NT + n) * 64;
        copy_16(to, col < cols ? from + col : from, token < rows && col < cols);
        copy_16(to + 32, col + 32 < cols ? from + col + 32 : from, token < rows && col + 32 < cols);
      }
    }
  };
  const auto copy_w = [&](auto which) {
    constexpr int m = decltype(which)::value;
    const int col = (to_unit * kWarps + warp) * kUnit + t * 8;
    const bool first = col < cols, second = col + 32 < cols;
    uint4* to = ring + to_slot * 128;
    copy_16(to, first ? low[m] + col : low[m], first);
    copy_16(to + 32, second ? low[m] + col + 32 : low[m], second);
    copy_16(to + 64, first ? high[m] + col : high[m], first);
    copy_16(to + 96, second ? high[m] + col + 32 : high[m], second);
    to_slot = to_slot + 1 == D ? 0 : to_slot + 1;
    if (--left == 0) return;
    if (m == M - 1 && ++to_unit == own) {
      to_unit = 0;
      to_tile += gridDim.x;
      aim();
    }
  };
  const auto each = [](auto&& body, auto... index) { (body(index), ...); };
  const auto times = [&]<int... i>(std::integer_sequence<int, i...>, auto&& body) {
    each(body, std::integral_constant<int, i>{}...);
  };

  if (!late) let_next_start();
  if (left > 0) aim();
  const int total = left;
  times(std::make_integer_sequence<int, D>{}, [&](auto s) {
    if (left > 0) copy_w(std::integral_constant<int, decltype(s)::value % M>{});
    if constexpr (!kStream) commit();
  });
  wait_for_previous();
  if constexpr (kStream) {
    // These complete the groups of the first slots; all of W so far is in the first one.
    times(std::make_integer_sequence<int, D>{}, [&](auto s) {
      constexpr int i = decltype(s)::value;
      if (i % M == 0 && i < total) {
        copy_x(i / M % own, x_slot);
        x_slot = x_slot + 1 == L::kXSlots ? 0 : x_slot + 1;
      }
      commit();
    });
    if (threadIdx.x < rows) factors[threadIdx.x] = p.in.factors ? __ldcg(p.in.factors + threadIdx.x) : 1.0f;
  } else {
    load_x<NT>(p.in, rows, cols, units, xs, factors, squares);
  }

  int slot = 0, from_x = 0, buffer = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    constexpr int kItems = E::kItems * NT * 128;  // results of a tile
    constexpr int kEach = (kItems + kRowThreads - 1) / kRowThreads;
    typename E::Operands operands[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = threadIdx.x + i * kRowThreads;
      if (item < kItems) operands[i] = E::template load<NT>(p, tile, item);
    }

    float4 sums[M][NT] = {};
    for (int u = 0; u < own; ++u) {
      uint4 x[NT][2];
      if constexpr (!kStream) {
        const int col = (u * kWarps + warp) * kUnit + t * 8;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          x[n][0] = x[n][1] = make_uint4(0, 0, 0, 0);
          if (n * 8 + g < rows) {
            const auto* from = reinterpret_cast<const uint4*>(xs + (n * 8 + g) * x_stride(units) + col);
            x[n][0] = from[0];
            x[n][1] = from[4];
          }
        }
      }
      times(std::make_integer_sequence<int, M>{}, [&](auto which) {
        constexpr int m = decltype(which)::value;
        wait_copies<D - 1>();
        const uint4* at = ring + slot * 128;
        const uint4 a0 = at[0], a1 = at[32], b0 = at[64], b1 = at[96];
        if constexpr (kStream && m == 0) {
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            x[n][0] = x_ring[(from_x * NT + n) * 64];
            x[n][1] = x_ring[(from_x * NT + n) * 64 + 32];
          }
          from_x = from_x + 1 == L::kXSlots ? 0 : from_x + 1;
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          multiply(sums[m][n], a0.x, b0.x, a0.y, b0.y, x[n][0].x, x[n][0].y);
          multiply(sums[m][n], a0.z, b0.z, a0.w, b0.w, x[n][0].z, x[n][0].w);
          multiply(sums[m][n], a1.x, b1.x, a1.y, b1.y, x[n][1].x, x[n][1].y);
          multiply(sums[m][n], a1.z, b1.z, a1.w, b1.w, x[n][1].z, x[n][1].w);
        }
        slot = slot + 1 == D ? 0 : slot + 1;
        constexpr int next_m = (m + D) % M;
        if (left > 0) {
          if constexpr (kStream && next_m == 0) {
            copy_x(to_unit, x_slot);
            x_slot = x_slot + 1 == L::kXSlots ? 0 : x_slot + 1;
          }
          copy_w(std::integral_constant<int, next_m>{});
        } else if (!prefetched) {
          prefetched = true;
          if (late) let_next_start();
          prefetch(p.next, blockIdx.x * kWarps + warp, gridDim.x * kWarps, lane);
        }
        commit();
      });
    }

    float* mine = reduce + buffer * kWarps * L::kSums;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        *reinterpret_cast<float4*>(mine + warp * L::kSums + (m * NT + n) * 128 + lane * 4) = sums[m][n];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = threadIdx.x + i * kRowThreads;
      if (item >= kItems) break;
      float results[M / E::kItems];
#pragma unroll
      for (int k = 0; k < M / E::kItems; ++k) {
        float sum = mine[item + k * kItems];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) sum += mine[w * L::kSums + item + k * kItems];
        results[k] = sum;
      }
      E::template store<NT>(p, tile, item, results, factors, operands[i]);
    }
    if constexpr (L::kBuffers == 1) __syncthreads();
    if constexpr (L::kBuffers == 2) buffer ^= 1;
  }
}

/// Which of a tile's results an item is, by the tensor core's layout.
template <int NT>
struct Item {
  int m, row, token;
  __device__ explicit Item(int item) {
    const int in_tile = item % 128, lane = in_tile / 4;
    m = item / (128 * NT);
    row = lane / 4 + (in_tile & 2) * 4;
    token = item / 128 % NT * 8 + lane % 4 * 2 + (in_tile & 1);
  }
};

}  // namespace tidal::cuda::skinny
