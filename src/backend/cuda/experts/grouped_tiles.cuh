// Grouped products with matrices that stay quantised: 256 rows of W (of gate and up 128 each) by up to 128 places a
// tile, in steps of the 128 columns of a quantised tile; 16 warps with 16 rows of W each and all places, cp.async two
// steps ahead. Where a block cannot have the memory (devices of 99 KiB), 8 warps by up to 64 places, to the same bits.
//
// A lane has its elements of W in the order of the tile's: 4 neighbours of 16 columns are what it has of an operand of
// the tensor core, whose columns may be permuted as long as those of x are, and so a code is a number once for all
// places.
#pragma once

#include "backend/cuda/experts/grouped_products.h"
#include "backend/cuda/experts/grouped_store.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/weights/quantised.h"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda::grouped {

constexpr int kStages = 3;
constexpr int kRowBytes = kTileCols * 2;  // of x in a step
constexpr int kPieces = kRowBytes / 16;   // of 16 bytes

/// Sizes of a block and of its tiles.
template <int kWarpsOf, int kPlacesOf>
struct Shape {
  static constexpr int kWarps = kWarpsOf, kThreads = 32 * kWarps, kPlaces = kPlacesOf;
  static constexpr int kRowsAtOnce = kThreads / kPieces;
  template <class T>
  static constexpr int kStageBytes = kPlaces* kRowBytes + 2 * kWarps* T::kBytes;
  template <class T>
  static constexpr int kBytes = kStages* kStageBytes<T>;
};
using Large = Shape<16, kWideTile>;
using Small = Shape<8, kGroupTile>;

/// Where a piece of a row lies: two neighbouring pieces of four rows are in all banks.
__device__ inline int piece_offset(int row, int piece) { return (((piece + 2 * row) & 7) | (piece & 8)) * 16; }

template <class S>
struct GateUpTiles {
  using Params = GroupedGateUp;
  using Shape = S;
  static constexpr int kRows = S::kWarps * kTileRows;  // of each matrix in a tile
  __device__ static const __nv_bfloat16* x(const Params& p, int place) {
    return p.x + static_cast<int64_t>(__ldcg(p.groups.row + place)) * p.cols;
  }
  /// The n-th of a warp's two tiles down, and its matrix.
  __device__ static const std::byte* matrix(const Params& p, int n) { return n == 0 ? p.tiles.w : p.tiles.up; }
  __device__ static int row(int first_row, int warp, int) { return first_row + warp * kTileRows; }
  __device__ static void store(const Params& p, int expert, int place, int row, const float (&sums)[2][4], int half) {
    if (row >= p.panel.rows) return;
    const GateUpScales scales(p, p.panel.first + expert);
    store_gate_up(p, scales, place, row, sums[0] + 2 * half, sums[1] + 2 * half);
  }
};

template <class S>
struct DownTiles {
  using Params = GroupedDown;
  using Shape = S;
  static constexpr int kRows = 2 * S::kWarps * kTileRows;
  __device__ static const __nv_bfloat16* x(const Params& p, int place) {
    return p.hidden + static_cast<int64_t>(place) * p.cols;
  }
  __device__ static const std::byte* matrix(const Params& p, int) { return p.tiles.w; }
  __device__ static int row(int first_row, int warp, int n) { return first_row + (2 * warp + n) * kTileRows; }
  __device__ static void store(const Params& p, int expert, int place, int row, const float (&sums)[2][4], int half) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (row + n * kTileRows < p.panel.rows) {
        store_down(p, p.panel.first + expert, place, row + n * kTileRows, sums[n] + 2 * half);
      }
    }
  }
};

/// What a block works on.
struct TileTask {
  int expert, first_row;  // of W
  int first_place, places;
};

/// A tile of up to 16 M places.
template <class T, class P, int M>
__device__ void multiply_tile(const typename P::Params& p, const TileTask& task, int steps, uint8_t* stages) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const int piece = thread % kPieces;
  using S = typename P::Shape;
  static_assert(16 * M <= S::kPlaces && 16 * M % S::kRowsAtOnce == 0);
  constexpr int kOwnRows = 16 * M / S::kRowsAtOnce;  // of x, of which a thread copies a piece each
  const __nv_bfloat16* source[kOwnRows];
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    source[i] = P::x(p, task.first_place + min(i * S::kRowsAtOnce + thread / kPieces, task.places - 1));
  }
  // Behind the last row of W the tile is another's, and its results are not stored.
  const uint8_t* matrix[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int row = min(P::row(task.first_row, warp, n), p.panel.rows - kTileRows);
    const int64_t down = (static_cast<int64_t>(p.panel.first + task.expert) * p.tiles.expert_rows + row) / kTileRows;
    matrix[n] = reinterpret_cast<const uint8_t*>(P::matrix(p, n)) + down * steps * T::kBytes;
  }
  const auto copy = [&](int step) {
    if (step < steps) {
      uint8_t* const stage = stages + step % kStages * S::template kStageBytes<T>;
      const int column = step * kTileCols + piece * 8;
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const int row = i * S::kRowsAtOnce + thread / kPieces;
        const bool valid = row < task.places && column < p.cols;
        copy_async(shared_address(stage + row * kRowBytes + piece_offset(row, piece)), source[i] + (valid ? column : 0),
                   valid);
      }
      uint8_t* const own = stage + S::kPlaces * kRowBytes + warp * 2 * T::kBytes;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        for (int at = lane * 16; at < T::kBytes; at += 512) {
          copy_async(shared_address(own + n * T::kBytes + at), matrix[n] + int64_t{step} * T::kBytes + at, true);
        }
      }
    }
    commit_copies();
  };

  float sums[M][2][4] = {};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copy(s);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copy(step + kStages - 1);
    const uint8_t* const stage = stages + step % kStages * S::template kStageBytes<T>;
    const auto* const own = static_cast<const uint8_t*>(
        __builtin_assume_aligned(stage + S::kPlaces * kRowBytes + warp * 2 * T::kBytes, 16));
#pragma unroll
    for (int run = 0; run < kTileCols / 32; ++run) {
      uint32_t b[2][2][2];  // of a tile and half a run
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float values[8];
        T::eight(own + n * T::kBytes, lane, run, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[n][i / 2][i % 2] = bf16_pair(values[2 * i], values[2 * i + 1]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * run + 2 * half + t / 2;  // the piece with columns 32 run + 16 half + 4 t
        const uint8_t* const from = stage + g * kRowBytes + piece_offset(g, at) + t % 2 * 8;
        Fragment a[M];
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const uint2 upper = *reinterpret_cast<const uint2*>(from + m * 16 * kRowBytes);
          const uint2 lower = *reinterpret_cast<const uint2*>(from + (m * 16 + 8) * kRowBytes);
          a[m].r[0] = upper.x, a[m].r[1] = lower.x, a[m].r[2] = upper.y, a[m].r[3] = lower.y;
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int n = 0; n < 2; ++n) multiply_add(sums[m][n], a[m], b[n][half][0], b[n][half][1]);
        }
      }
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // all have read before the next tile's copies
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = m * 16 + half * 8 + g;
      if (place < task.places) {
        P::store(p, task.expert, task.first_place + place, P::row(task.first_row, warp, 0) + 2 * t, sums[m], half);
      }
    }
  }
}

/// Blocks take tiles in turns: how many there are only the device knows.
template <class T, class P>
__global__ void __launch_bounds__(P::Shape::kThreads, 1)
    grouped_tiles_kernel(const __grid_constant__ typename P::Params p) {
  extern __shared__ __align__(16) uint8_t stages[];
  static_assert(T::kBytes % 16 == 0);
  wait_for_previous();
  let_next_start();
  const int across = (p.panel.rows + P::kRows - 1) / P::kRows, steps = (p.cols + kTileCols - 1) / kTileCols;
  using S = typename P::Shape;
  const int32_t* const tiles = (S::kPlaces == kWideTile ? p.groups.wide : p.groups.tile) + p.panel.first;
  const int from_tile = __ldcg(tiles), all = (__ldcg(tiles + p.panel.count) - from_tile) * across;
  TileTask task{};
  for (int index = blockIdx.x; index < all; index += gridDim.x) {
    const int tile = from_tile + index / across;
    task.expert = find_group(tiles, task.expert, p.panel.count, tile);
    task.first_row = index % across * P::kRows;
    const int32_t* const firsts = p.groups.first + p.panel.first + task.expert;
    task.first_place = __ldcg(firsts) + (tile - __ldcg(tiles + task.expert)) * S::kPlaces;
    task.places = min(S::kPlaces, __ldcg(firsts + 1) - task.first_place);
    if constexpr (S::kPlaces == kGroupTile) {
      if (task.places <= 32) {
        multiply_tile<T, P, 2>(p, task, steps, stages);
      } else {
        multiply_tile<T, P, 4>(p, task, steps, stages);
      }
    } else if (task.places <= 32) {
      multiply_tile<T, P, 2>(p, task, steps, stages);
    } else if (task.places <= 64) {
      multiply_tile<T, P, 4>(p, task, steps, stages);
    } else if (task.places <= 96) {
      multiply_tile<T, P, 6>(p, task, steps, stages);
    } else {
      multiply_tile<T, P, 8>(p, task, steps, stages);
    }
  }
}

template <class T, class P>
void launch_tiles(const typename P::Params& p, cudaStream_t stream) {
  using S = typename P::Shape;
  constexpr int kBytes = S::template kBytes<T>;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(grouped_tiles_kernel<T, P>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  check(allowed, kGroupedWhat);
  launch(kGroupedWhat, Start::Early, grouped_tiles_kernel<T, P>, dim3(multiprocessors()), dim3(S::kThreads), kBytes,
         stream, p);
}

template <class T>
bool large_fits() {
  return Large::kBytes<T> <= shared_memory_limit();
}

template <class T>
void ProductsOf<T>::gate_up(const GroupedGateUp& p, cudaStream_t stream) {
  static_assert(Small::kBytes<T> <= kLeastSharedMemory);
  if (large_fits<T>()) return launch_tiles<T, GateUpTiles<Large>>(p, stream);
  launch_tiles<T, GateUpTiles<Small>>(p, stream);
}
template <class T>
void ProductsOf<T>::down(const GroupedDown& p, cudaStream_t stream) {
  if (large_fits<T>()) return launch_tiles<T, DownTiles<Large>>(p, stream);
  launch_tiles<T, DownTiles<Small>>(p, stream);
}

}  // namespace tidal::cuda::grouped
