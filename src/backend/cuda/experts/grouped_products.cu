// Tiles of 64 places by 128 rows of W, in steps of 64 columns; 8 warps with 32 by 32 each, cp.async two steps ahead.
// Of gate and up a tile has 64 rows each, 16 of both in a warp, so that both of an element meet in a lane.
#include "backend/cuda/experts/grouped_products.h"

#include <algorithm>

#include "backend/cuda/experts/grouped_store.cuh"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/weights/quantised.h"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 256, kRowsOfW = 128, kColumns = 64, kStages = 3;
constexpr int kStageRows = kGroupTile + kRowsOfW;       // of x, then of W
constexpr int kStageBytes = kStageRows * kColumns * 2;  // rows of 128 bytes, pieces of 16 swizzled
constexpr int kSharedBytes = kStages * kStageBytes;
static_assert(kSharedBytes <= kLeastSharedMemory);

constexpr int kGroupThreads = 1024;

/// The sum of what the threads before have, of all kGroupThreads.
__device__ int add_before(int value, int* warps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int up_to = value;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, up_to, apart);
    if (lane >= apart) up_to += other;
  }
  __syncthreads();  // what the last call has left has been read
  if (lane == 31) warps[warp] = up_to;
  __syncthreads();
  int before = up_to - value;
  for (int w = 0; w < warp; ++w) before += warps[w];
  return before;
}

/// One block, a thread an expert: counts, sums, places.
__global__ void __launch_bounds__(kGroupThreads)
    group_kernel(const __grid_constant__ Choices choices, int count, int used, int experts,
                 const __grid_constant__ ExpertGroups groups) {
  static_assert(kMostExperts <= kGroupThreads);
  __shared__ int counts[kMostExperts], warps[kGroupThreads / 32];
  const int expert = threadIdx.x;
  wait_for_previous();
  let_next_start();
  counts[expert] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kGroupThreads) atomicAdd(counts + __ldcg(choices.experts + i), 1);
  __syncthreads();
  const int own = counts[expert], first = add_before(own, warps);
  const int tile = add_before((own + kGroupTile - 1) / kGroupTile, warps);
  const int wide = add_before((own + kWideTile - 1) / kWideTile, warps);
  if (expert <= experts) groups.first[expert] = first, groups.tile[expert] = tile, groups.wide[expert] = wide;
  if (expert == kGroupThreads - 1 && experts == kGroupThreads) {
    groups.first[experts] = first + own;
    groups.tile[experts] = tile + (own + kGroupTile - 1) / kGroupTile;
    groups.wide[experts] = wide + (own + kWideTile - 1) / kWideTile;
  }
  counts[expert] = first;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kGroupThreads) {
    // Which of a group's places a choice gets is of no account for its results.
    const int place = atomicAdd(counts + __ldcg(choices.experts + i), 1);
    groups.row[place] = i / used;
    groups.weight[place] = __ldcg(choices.weights + i);
    groups.place[i] = place;
  }
}

__device__ inline uint32_t piece_address(uint32_t base, int row, int piece) {
  return base + static_cast<uint32_t>(row * 128 + ((piece ^ row) & 7) * 16);
}

struct GateUp {
  using Params = GroupedGateUp;
  static constexpr bool kPair = true;
  __device__ static const __nv_bfloat16* x(const Params& p, int place) {
    return p.x + static_cast<int64_t>(__ldcg(p.groups.row + place)) * p.cols;
  }
  /// Row r of the tile of W that begins with row `first` of the panel's; `inside`: whether there is one.
  __device__ static const __nv_bfloat16* w(const Params& p, int expert, int first, int r, bool& inside) {
    // Warps have 16 rows of gate, then the same of up.
    const int row = first + r / 32 * 16 + r % 16;
    inside = row < p.panel.rows;
    const auto* from = r % 32 < 16 ? p.panel.w : p.panel.up;
    return from + (static_cast<int64_t>(expert) * p.panel.expert_rows + (inside ? row : 0)) * p.cols;
  }
};
struct Down {
  using Params = GroupedDown;
  static constexpr bool kPair = false;
  __device__ static const __nv_bfloat16* x(const Params& p, int place) {
    return p.hidden + static_cast<int64_t>(place) * p.cols;
  }
  __device__ static const __nv_bfloat16* w(const Params& p, int expert, int first, int r, bool& inside) {
    inside = first + r < p.panel.rows;
    return p.panel.w + (static_cast<int64_t>(expert) * p.panel.expert_rows + (inside ? first + r : 0)) * p.cols;
  }
};

/// Results of a warp: [2 of 16 places][4 of 8 rows of W].
using Sums = float[2][4][4];

__device__ void store(const GroupedGateUp& p, int expert, int first_place, int end, int first_row, const Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const grouped::GateUpScales scales(p, p.panel.first + expert);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first_place + warp / 4 * 32 + m * 16 + half * 8 + lane / 4;
      if (place >= end) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = first_row + warp % 4 * 16 + n * 8 + lane % 4 * 2;
        if (row >= p.panel.rows) continue;
        grouped::store_gate_up(p, scales, place, row, sums[m][n] + 2 * half, sums[m][n + 2] + 2 * half);
      }
    }
  }
}

__device__ void store(const GroupedDown& p, int expert, int first_place, int end, int first_row, const Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first_place + warp / 4 * 32 + m * 16 + half * 8 + lane / 4;
      if (place >= end) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int row = first_row + warp % 4 * 32 + n * 8 + lane % 4 * 2;
        if (row < p.panel.rows) grouped::store_down(p, p.panel.first + expert, place, row, sums[m][n] + 2 * half);
      }
    }
  }
}

/// Blocks take tiles in turns: how many there are only the device knows.
template <class P>
__global__ void __launch_bounds__(kThreads, 1) grouped_kernel(const __grid_constant__ typename P::Params p) {
  extern __shared__ uint4 stages[];
  const uint32_t base = shared_address(stages);
  wait_for_previous();
  let_next_start();
  constexpr int kRows = P::kPair ? kRowsOfW / 2 : kRowsOfW;  // of each matrix in a tile
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int across = (p.panel.rows + kRows - 1) / kRows, steps = (p.cols + kColumns - 1) / kColumns;
  const int32_t* tiles = p.groups.tile + p.panel.first;
  const int from_tile = __ldcg(tiles), all = (__ldcg(tiles + p.panel.count) - from_tile) * across;
  int expert = 0;
  for (int t = blockIdx.x; t < all; t += gridDim.x) {
    const int tile = from_tile + t / across, first_row = t % across * kRows;
    expert = grouped::find_group(tiles, expert, p.panel.count, tile);
    const int group = __ldcg(p.groups.first + p.panel.first + expert);
    const int end = __ldcg(p.groups.first + p.panel.first + expert + 1);
    const int first_place = group + (tile - __ldcg(tiles + expert)) * kGroupTile;

    // A thread copies a piece of 16 bytes of every 32nd row.
    const int piece = thread % 8;
    const __nv_bfloat16* source[kStageRows / 32];
    uint32_t inside = 0;
#pragma unroll
    for (int i = 0; i < kStageRows / 32; ++i) {
      const int row = i * 32 + thread / 8;
      bool is_inside;
      if (i < kGroupTile / 32) {
        is_inside = first_place + row < end;
        source[i] = P::x(p, is_inside ? first_place + row : first_place);
      } else {
        source[i] = P::w(p, expert, first_row, row - kGroupTile, is_inside);
      }
      inside |= static_cast<uint32_t>(is_inside) << i;
    }
    const auto copy = [&](int step) {
      if (step < steps) {
        const int column = step * kColumns + piece * 8;
        const uint32_t stage = base + step % kStages * kStageBytes;
#pragma unroll
        for (int i = 0; i < kStageRows / 32; ++i) {
          const bool valid = (inside >> i & 1) && column < p.cols;
          copy_async(piece_address(stage, i * 32 + thread / 8, piece), valid ? source[i] + column : source[i], valid);
        }
      }
      commit_copies();
    };

    Sums sums = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) copy(s);
    for (int step = 0; step < steps; ++step) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      copy(step + kStages - 1);
      const uint32_t stage = base + step % kStages * kStageBytes, of_w = stage + kGroupTile * 128;
#pragma unroll
      for (int k = 0; k < kColumns / 16; ++k) {
        Fragment a[2], b[2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          a[m] = load_matrix(piece_address(stage, warp / 4 * 32 + m * 16 + lane % 16, 2 * k + lane / 16));
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          // Two of 8 rows of W, both halves of 16 columns of each.
          b[n] =
              load_matrix(piece_address(of_w, warp % 4 * 32 + n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) multiply_add(sums[m][n], a[m], b[n / 2].r[n % 2 * 2], b[n / 2].r[n % 2 * 2 + 1]);
        }
      }
    }
    wait_for_copies<0>();
    __syncthreads();  // all have read before the next tile's copies
    store(p, expert, first_place, end, first_row, sums);
  }
}

/// A block has four columns a thread of a row.
__global__ void combine_kernel(const float* results, const int32_t* place, int used, int width, float* x, bool add) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width / 4) return;
  float4* to = reinterpret_cast<float4*>(x + static_cast<int64_t>(blockIdx.y) * width) + i;
  float4 sum = add ? *to : make_float4(0, 0, 0, 0);
  for (int k = 0; k < used; ++k) {
    const int from = __ldcg(place + static_cast<int64_t>(blockIdx.y) * used + k);
    const float4 v = __ldcg(reinterpret_cast<const float4*>(results + static_cast<int64_t>(from) * width) + i);
    sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  }
  *to = sum;
}

template <class P>
void launch_tiles(const typename P::Params& params, cudaStream_t stream) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(grouped_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  check(allowed, grouped::kGroupedWhat);
  launch(grouped::kGroupedWhat, Start::Early, grouped_kernel<P>, dim3(2 * multiprocessors()), dim3(kThreads),
         kSharedBytes, stream, params);
}

}  // namespace

void launch_group(const Choices& choices, int rows, const Experts& experts, const ExpertGroups& groups,
                  cudaStream_t stream) {
  launch("grouping rows", Start::Early, group_kernel, dim3(1), dim3(kGroupThreads), 0, stream, choices,
         rows * experts.used, experts.used, experts.count, groups);
}

void launch_grouped(const GroupedGateUp& params, cudaStream_t stream) { launch_tiles<GateUp>(params, stream); }
void launch_grouped(const GroupedDown& params, cudaStream_t stream) { launch_tiles<Down>(params, stream); }

bool groups_tiles(ggml_type type, int rows) { return stays_quantised(type) && rows % kTileRows == 0; }

void launch_grouped_tiles(const GroupedGateUp& params, cudaStream_t stream) {
  tiles::with_type(params.tiles.type, [&](auto t) { grouped::ProductsOf<decltype(t)>::gate_up(params, stream); });
}
void launch_grouped_tiles(const GroupedDown& params, cudaStream_t stream) {
  tiles::with_type(params.tiles.type, [&](auto t) { grouped::ProductsOf<decltype(t)>::down(params, stream); });
}

void launch_combine(const float* results, const int32_t* place, int rows, int used, int width, float* x, bool add,
                    cudaStream_t stream) {
  if (rows == 0) return;
  launch("adding experts up", Start::Early, combine_kernel, dim3((width / 4 + 255) / 256, rows), dim3(256), 0, stream,
         results, place, used, width, x, add);
}

}  // namespace tidal::cuda
