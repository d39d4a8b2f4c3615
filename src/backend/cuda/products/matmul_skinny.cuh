// The kernel behind matmul_skinny.h; what differs between the products is in an Epilogue.
//
// A lane needs 16 bytes each of two rows of W for two steps of the tensor core, if the columns that it holds are taken
// for those that the instruction calls its own: the same permutation of columns applies to W and x, so nothing is
// shuffled. Each lane copies what it will need itself into a ring in shared memory (cp.async), D slots ahead: no
// barrier, no bank conflict, and 16 D KiB of W in flight a multiprocessor. The first slots are asked for before the
// kernel waits for the one before.
#pragma once

#include <type_traits>
#include <utility>

#include "backend/cuda/products/matmul_device.cuh"
#include "backend/cuda/products/matmul_skinny.h"

namespace tidal::cuda::skinny {

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
  for (int first = 0; first < groups; first += B * kRowThreads) {
    float4 v[B][R], w[B];
#pragma unroll
    for (int b = 0; b < B; ++b) {
      const int i = first + b * kRowThreads + threadIdx.x;
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
      const int i = first + b * kRowThreads + threadIdx.x;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= rows) break;
        sums[r] = __fadd_rn(sums[r], square_sum(v[b][r]));
        if (i >= groups) continue;
        auto* to = reinterpret_cast<__nv_bfloat162*>(xs + r * stride + 4 * i);
        to[0] = __floats2bfloat162_rn(v[b][r].x * w[b].x, v[b][r].y * w[b].y);
        to[1] = __floats2bfloat162_rn(v[b][r].z * w[b].z, v[b][r].w * w[b].w);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float sum = tree_sum<4, 16>(sums[r]);
    if (threadIdx.x % 32 == 0) squares[r * kWarps + threadIdx.x / 32] = sum;
  }
}

/// Has the rows of x copied to shared memory, zeros behind their ends as in W. A warp takes every 8th row.
__device__ inline void copy_rows(const __nv_bfloat16* rounded, int rows, int cols, int units, __nv_bfloat16* xs) {
  const int stride = x_stride(units);
  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    const __nv_bfloat16* from = rounded + static_cast<int64_t>(row) * cols;
#pragma unroll 8
    for (int col = threadIdx.x % 32 * 8; col < units * kUnit; col += 256) {
      copy_16(xs + row * stride + col, col < cols ? from + col : from, col < cols);
    }
  }
}

/// x of all rows in shared memory, and the factors.
template <int NT>
__device__ inline void load_x(const SkinnyInput& in, int rows, int cols, int units, __nv_bfloat16* xs, float* factors,
                              float* squares) {
  const int stride = x_stride(units), thread = threadIdx.x;
  if (!in.x) {
    copy_rows(in.rounded, rows, cols, units, xs);
    commit();
    load_factors<NT>(in, rows, cols, factors);
    wait_copies<0>();
    __syncthreads();
    return;
  }
  const int padding = units * kUnit - cols;  // columns: zeros, as those of W
  for (int i = thread; i < rows * padding; i += kRowThreads) {
    xs[i / padding * stride + cols + i % padding] = __float2bfloat16_rn(0.0f);
  }
  if (rows == 1) {
    round_rows<1, 4>(in, rows, cols, xs, stride, squares);
  } else {
    round_rows<kFusedRows, 2>(in, rows, cols, xs, stride, squares);
  }
  __syncthreads();
  if (thread < rows) {  // read behind the barrier before the first tile's end
    factors[thread] = in.norm ? norm_factor(squares + thread * kWarps, cols, in.epsilon) : 1.0f;
  }
}

/// Epilogue E: Params, kM (tiles of 16 rows worked on together), row(params, tile, m, r) -> that row of W,
/// kItems (results of a tile, in units of NT * 128), sum_of(item) -> its place among the sums, Operands load(params,
/// tile, item) before the product and store(params, tile, item, sums, factors, operands) behind it.
template <class E, int NT, int D, bool kStream>
__global__ void __launch_bounds__(kRowThreads, NT == 1 && !kStream ? 2 : 1)
    skinny_kernel(const __grid_constant__ typename E::Params p, int tiles, int units) {
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

  if (left > 0) aim();
  const int total = left;
  times(std::make_integer_sequence<int, D>{}, [&](auto s) {
    if (left > 0) copy_w(std::integral_constant<int, decltype(s)::value % M>{});
    if constexpr (!kStream) commit();
  });
  wait_for_previous();
  // Only now: attention may read what kernels before this one wrote when it starts.
  let_next_start();
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
    load_factors<NT>(p.in, rows, cols, factors);
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
        const UnitOfW w{{at[0], at[32]}, {at[64], at[96]}};
        if constexpr (kStream && m == 0) {
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            x[n][0] = x_ring[(from_x * NT + n) * 64];
            x[n][1] = x_ring[(from_x * NT + n) * 64 + 32];
          }
          from_x = from_x + 1 == L::kXSlots ? 0 : from_x + 1;
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) multiply(sums[m][n], w, x[n]);
        slot = slot + 1 == D ? 0 : slot + 1;
        constexpr int next_m = (m + D) % M;
        if (left > 0) {
          if constexpr (kStream && next_m == 0) {
            copy_x(to_unit, x_slot);
            x_slot = x_slot + 1 == L::kXSlots ? 0 : x_slot + 1;
          }
          copy_w(std::integral_constant<int, next_m>{});
        }
        commit();
      });
    }

    float* mine = reduce + buffer * kWarps * L::kSums;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        *reinterpret_cast<float4*>(mine + warp * L::kSums + (m * NT + n) * 128 + sum_place(lane * 4)) = sums[m][n];
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
        const float* parts = mine + sum_place(E::sum_of(item)) + k * kItems;
        float sum = parts[0];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) sum += parts[w * L::kSums];
        results[k] = sum;
      }
      E::template store<NT>(p, tile, item, results, factors, operands[i]);
    }
    if constexpr (L::kBuffers == 1) __syncthreads();
    if constexpr (L::kBuffers == 2) buffer ^= 1;
  }
}

}  // namespace tidal::cuda::skinny
