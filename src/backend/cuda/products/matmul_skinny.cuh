// The kernel behind matmul_skinny.h; what differs between the products is in an Epilogue, between kinds of matrices in
// a W (matmul_units.cuh, matmul_tiles.cuh).
//
// A lane needs neighbouring columns of two rows of W for two steps of the tensor core, if the columns that it holds are
// taken for those that the instruction calls its own: the same permutation of columns applies to W and x, so nothing is
// shuffled. Each warp copies what it will need itself into a ring in shared memory (cp.async), D slots ahead, of bf16
// even each lane: no barrier of the block, no bank conflict, and 16 D KiB of bf16 in flight a multiprocessor. The first
// slots are asked for before the kernel waits for the one before.
#pragma once

#include <type_traits>
#include <utility>

#include "backend/cuda/products/matmul_device.cuh"
#include "backend/cuda/products/matmul_skinny.h"
#include "backend/cuda/products/packed_rows.cuh"

namespace tidal::cuda::skinny {

/// Units of a matrix, the last one filled up with zeros.
template <class W>
int units_of(int cols) {
  return (cols + W::kUnit - 1) / W::kUnit;
}

/// Shared memory of one variant, in bytes; [..] is what lies there, in this order.
template <class W, int M, int NT, int D, bool kStream>
struct Layout {
  static constexpr int kXSlots = D / M;       // units of x
  static constexpr int kGroups = W::kGroups;  // of 8 warps, a tile each
  // Of sums: with two, a tile needs one barrier.
  static constexpr int kBuffers = M * NT * kGroups >= 4 || (kStream && kGroups > 1) ? 1 : 2;
  static constexpr int kSums = M * NT * 128;                                        // of one warp
  static constexpr int kRing = kGroups * kWarps * D * W::kSlot;                     // [group][warp][D] what W has there
  static constexpr int kXSlot = W::template kXSlot<NT>;                             // of a unit of x
  static constexpr int kXRing = kStream ? kGroups * kWarps * kXSlots * kXSlot : 0;  // [group][warp][slot]
  static constexpr int kReduce = kGroups * kBuffers * kWarps * kSums * 4;
  static constexpr int kFactors = 8 * NT * 4;
  static constexpr int kSquares = kFusedRows * kWarps * 4;
  static constexpr int kFixed = kRing + kXRing + kReduce + kFactors + kSquares;
};

/// Rounds R or fewer rows of float32 into `xs`, B groups of columns at a time so that loads overlap.
template <class W, int R, int B>
__device__ inline void round_rows(const SkinnyInput& in, int rows, int cols, int units, char* xs, float* squares) {
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
        const float4 normed =
            make_float4(v[b][r].x * w[b].x, v[b][r].y * w[b].y, v[b][r].z * w[b].z, v[b][r].w * w[b].w);
        W::put_four(xs + r * W::x_row(units), i, units, normed, i < groups);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float sum = tree_sum<4, 16>(sums[r]);
    if (threadIdx.x % 32 == 0) squares[r * kWarps + threadIdx.x / 32] = sum;
  }
}

/// x of all rows in shared memory, and the factors.
template <class W, int NT>
__device__ inline void load_x(const SkinnyInput& in, int rows, int cols, int units, char* xs, float* factors,
                              float* squares) {
  const int thread = threadIdx.x;
  if ((W::kPacked && !W::kOne) || !in.x) {
    if constexpr (W::kOne) {
      // The last warp makes the factor while the others pack.
      if (thread < W::kPackers * 32) {
        W::load_rows(in, rows, cols, units, xs);
      } else {
        load_factors<NT>(in, W::kPackers, rows, cols, factors);
      }
    } else {
      W::load_rows(in, rows, cols, units, xs);
      commit();
      load_factors<NT>(in, 0, rows, cols, factors);
      wait_copies<0>();
    }
    __syncthreads();
    return;
  }
  if constexpr (!W::kPacked) {
    const int padding = units * W::kUnit - cols;  // columns: zeros, as those of W
    for (int i = thread; i < rows * padding; i += kRowThreads) {
      auto* row = reinterpret_cast<__nv_bfloat16*>(xs + i / padding * W::x_row(units));
      row[cols + i % padding] = __float2bfloat16_rn(0.0f);
    }
  }
  if (thread < kRowThreads) {
    if (W::kOne || rows == 1) {
      round_rows<W, 1, 4>(in, rows, cols, units, xs, squares);
    } else if constexpr (!W::kPacked) {
      round_rows<W, kFusedRows, 2>(in, rows, cols, units, xs, squares);
    }
  }
  __syncthreads();
  if (thread < rows) {  // of one group: read behind the barrier before the first tile's end
    factors[thread] = in.norm ? norm_factor(squares + thread * kWarps, cols, in.epsilon) : 1.0f;
  }
  if constexpr (W::kGroups > 1) __syncthreads();
}

/// Matrices W: kUnit (columns), kSlot (bytes that a warp has of a unit in the ring), kGroups (of 8 warps in a block),
/// kShared (whether lanes read what others copied), kPacked (whether x is: packed_rows.cuh), kOne (whether it is one
/// row), Aim (where 16 rows lie), and the functions of W and x.
/// Epilogue E: Params, here(params) (those of this block's part of the grid), kWaits (whether rows of W are chosen by
/// the kernel before), kM (tiles of 16 rows worked on together), row(params, tile, m, r) -> that row of W, kItems
/// (results of a tile, in units of NT * 128), sum_of(item) -> its place among the sums, Operands load(params, tile,
/// item) before the product and store(params, tile, item, sums, factors, operands) behind it.
template <class W, class E, int NT, int D, bool kStream>
__global__ void __launch_bounds__(W::kGroups* kRowThreads, NT == 1 && !kStream ? W::kBlocks : 1)
    skinny_kernel(const __grid_constant__ typename E::Params given, int tiles, int units) {
  const auto& p = E::here(given);
  constexpr int M = E::kM;
  using L = Layout<W, M, NT, D, kStream>;
  constexpr int kUnit = W::kUnit;
  static_assert(!kStream || D % M == 0);
  extern __shared__ uint4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  const int group = L::kGroups > 1 ? threadIdx.x / kRowThreads : 0;
  const int thread = L::kGroups > 1 ? threadIdx.x % kRowThreads : threadIdx.x;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  char* ring = base + (group * kWarps + warp) * D * W::kSlot;
  char* x_ring = base + L::kRing + (group * kWarps + warp) * L::kXSlots * L::kXSlot;
  float* reduce = reinterpret_cast<float*>(base + L::kRing + L::kXRing) + group * (L::kReduce / 4 / L::kGroups);
  float* factors = reinterpret_cast<float*>(base + L::kRing + L::kXRing + L::kReduce);
  float* squares = factors + 8 * NT;
  char* xs = base + L::kFixed;

  const int rows = p.rows, cols = p.cols;
  const int own = units > warp ? (units - warp + kWarps - 1) / kWarps : 0;  // units of this warp
  const int first_tile = static_cast<int>(blockIdx.x) * L::kGroups + group;
  const int next_tile = static_cast<int>(gridDim.x) * L::kGroups;
  const int my_tiles = (tiles - first_tile + next_tile - 1) / next_tile;
  const auto synchronise_group = [&] {
    if constexpr (L::kGroups == 1) {
      __syncthreads();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kRowThreads) : "memory");
    }
  };

  // The copying end of the ring.
  int left = my_tiles * own * M, to_tile = first_tile, to_unit = 0, to_slot = 0, x_slot = 0;
  typename W::Aim aims[M];  // at the tile that is copied
  const auto aim = [&] {
#pragma unroll
    for (int m = 0; m < M; ++m)
      aims[m].at(
          p, [&](int r) { return E::row(p, to_tile, m, r); }, lane, warp);
  };
  const auto copy_x = [&](int unit, int slot) {
    if constexpr (kStream) {
      unit = unit * kWarps + warp;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int token = n * 8 + g;
        const int64_t row = token < rows ? token : 0;
        char* to = x_ring + slot * L::kXSlot + n * (L::kXSlot / NT);
        if constexpr (W::kPacked) {
          W::copy_x(to, reinterpret_cast<const char*>(p.in.packed), token, unit, units, g, t, token < rows);
        } else {
          W::copy_x(reinterpret_cast<uint4*>(to) + lane, p.in.rounded + row * cols, unit * kUnit, t, cols,
                    token < rows);
        }
      }
    }
  };
  const auto copy_w = [&](auto which) {
    constexpr int m = decltype(which)::value;
    W::copy(ring + to_slot * W::kSlot, aims[m], to_unit * kWarps + warp, cols, lane);
    to_slot = to_slot + 1 == D ? 0 : to_slot + 1;
    if (--left == 0) return;
    if (m == M - 1 && ++to_unit == own) {
      to_unit = 0;
      to_tile += next_tile;
      aim();
    }
  };
  const auto each = [](auto&& body, auto... index) { (body(index), ...); };
  const auto times = [&]<int... i>(std::integer_sequence<int, i...>, auto&& body) {
    each(body, std::integral_constant<int, i>{}...);
  };

  if constexpr (E::kWaits) wait_for_previous();
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
    load_factors<NT>(p.in, 0, rows, cols, factors);
    if constexpr (L::kGroups > 1) __syncthreads();
  } else {
    load_x<W, NT>(p.in, rows, cols, units, xs, factors, squares);
  }

  int slot = 0, from_x = 0, buffer = 0;
  for (int tile = first_tile; tile < tiles; tile += next_tile) {
    constexpr int kItems = E::kItems * NT * 128;  // results of a tile
    constexpr int kEach = (kItems + kRowThreads - 1) / kRowThreads;
    typename E::Operands operands[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = thread + i * kRowThreads;
      if (item < kItems) operands[i] = E::template load<NT>(p, tile, item);
    }

    float4 sums[M][NT] = {};
    for (int u = 0; u < own; ++u) {
      [[maybe_unused]] uint4 x[NT][2];
      if constexpr (!kStream && !W::kPacked) {
        const char* unit = xs + (u * kWarps + warp) * kUnit * 2;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          x[n][0] = x[n][1] = make_uint4(0, 0, 0, 0);
          if (n * 8 + g < rows) W::read_x(x[n], unit + (n * 8 + g) * W::x_row(units), t);
        }
      }
      times(std::make_integer_sequence<int, M>{}, [&](auto which) {
        constexpr int m = decltype(which)::value;
        wait_copies<D - 1>();
        if constexpr (W::kShared) __syncwarp();
        const char* from = x_ring + from_x * L::kXSlot;
        if constexpr (kStream && m == 0) from_x = from_x + 1 == L::kXSlots ? 0 : from_x + 1;
        if constexpr (W::kPacked) {
          const char* unit = kStream ? from : xs + (u * kWarps + warp) * kPackedUnit;
          W::multiply(sums[m], ring + slot * W::kSlot, lane, unit, kStream ? W::kXRow : W::x_row(units), rows);
        } else {
          if constexpr (kStream && m == 0) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
              const auto* pieces = reinterpret_cast<const uint4*>(from + n * (L::kXSlot / NT)) + lane;
              x[n][0] = pieces[0];
              x[n][1] = pieces[32];
            }
          }
          W::multiply(sums[m], ring + slot * W::kSlot, lane, x);
        }
        if constexpr (W::kShared) __syncwarp();
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
    synchronise_group();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = thread + i * kRowThreads;
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
    if constexpr (L::kBuffers == 1) synchronise_group();
    if constexpr (L::kBuffers == 2) buffer ^= 1;
  }
}

}  // namespace tidal::cuda::skinny
