#include "backend/cuda/products/elementwise.h"

#include "backend/cuda/products/activation.cuh"
#include "backend/cuda/products/packed_rows.cuh"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kBlock = 64;  // positions of a block of the cache

__global__ void angles_kernel(const __grid_constant__ AnglesParams p) {
  let_next_start();
  const int row = blockIdx.x;
  const int position = p.tables.positions[row];
  if (threadIdx.x == 0) {
    const DeviceChunk& chunk = p.tables.chunks[p.tables.row_chunk[row]];
    p.slots[row] = p.tables.blocks[chunk.table + position / kBlock] * kBlock + position % kBlock;
  }
  for (int i = threadIdx.x; i < p.pairs; i += blockDim.x) {
    double sine, cosine;
    sincos(position * p.frequencies[i], &sine, &cosine);
    p.angles[static_cast<int64_t>(row) * p.pairs + i] =
        make_float2(static_cast<float>(cosine * p.magnitude), static_cast<float>(sine * p.magnitude));
  }
}

/// 8 numbers of bf16, widened.
struct Eight {
  float values[8];

  __device__ explicit Eight(uint4 packed) {
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __uint_as_float(words[i] << 16);
      values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

__device__ uint2 round_four(float a, float b, float c, float d) { return make_uint2(bf16_pair(a, b), bf16_pair(c, d)); }

__global__ void embed_kernel(const __nv_bfloat16* embedding, const int32_t* tokens, int width, float* x) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  const auto* from = reinterpret_cast<const uint4*>(embedding + static_cast<int64_t>(tokens[row]) * width);
  auto* to = reinterpret_cast<float4*>(x + static_cast<int64_t>(row) * width);
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x) {
    const Eight v(__ldg(from + i));
    to[2 * i] = make_float4(v.values[0], v.values[1], v.values[2], v.values[3]);
    to[2 * i + 1] = make_float4(v.values[4], v.values[5], v.values[6], v.values[7]);
  }
}

/// Groups of 4 columns that a thread of round_kernel keeps: rows of up to 8192 columns are read once.
constexpr int kKept = 8;

__global__ void __launch_bounds__(kRowThreads) round_kernel(const __grid_constant__ RoundParams p) {
  let_next_start();
  __shared__ float squares[kRowThreads / 32];
  const int row = blockIdx.x, groups = p.cols / 4, first = threadIdx.x;
  const auto* norm = reinterpret_cast<const float4*>(p.norm);
  auto* to = reinterpret_cast<uint2*>(p.rounded + static_cast<int64_t>(row) * p.cols);
  wait_for_previous();
  const int64_t source = p.row_ids ? p.row_ids[row] : row;
  const auto* x = reinterpret_cast<const float4*>(p.x + source * p.cols);
  float4 kept[kKept];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int i = first + k * kRowThreads;
    kept[k] = i < groups ? __ldcg(x + i) : make_float4(0, 0, 0, 0);
  }
  float factor = 1;
  if (p.norm) {
    float sum = 0;  // zeros behind the row's end change nothing
#pragma unroll
    for (int k = 0; k < kKept; ++k) sum = __fadd_rn(sum, square_sum(kept[k]));
    for (int group = kKept * kRowThreads; group < groups; group += kRowThreads) {
      const int i = group + first;
      sum = __fadd_rn(sum, square_sum(i < groups ? __ldcg(x + i) : make_float4(0, 0, 0, 0)));
    }
    sum = tree_sum<4, 16>(sum);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    factor = norm_factor(squares, p.cols, p.epsilon);
    if (!p.whole && threadIdx.x == 0) p.factors[row] = factor;
  }
  const auto put = [&](int i, float4 v) {
    if (p.norm) {
      if (p.whole) v = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
      const float4 w = i < groups ? __ldg(norm + i) : make_float4(0, 0, 0, 0);
      v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
    }
    to[i] = round_four(v.x, v.y, v.z, v.w);
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (const int i = first + k * kRowThreads; i < groups) put(i, kept[k]);
  }
  for (int i = first + kKept * kRowThreads; i < groups; i += kRowThreads) put(i, __ldcg(x + i));
}

/// A warp has a unit of a row, so that few rows are many warps; the grid is (units in groups of kPackingWarps, rows).
/// What the norm divides by is left as sums of squares, since no block sees a whole row.
__global__ void __launch_bounds__(skinny::kPackingWarps * 32)
    round_packed_kernel(const __grid_constant__ RoundParams p, int units) {
  let_next_start();
  const int row = blockIdx.y, lane = threadIdx.x % 32, unit = blockIdx.x * skinny::kPackingWarps + threadIdx.x / 32;
  if (unit >= units) return wait_for_previous();
  const int i = unit * 32 + lane;  // of the row's groups of 4 columns
  const bool inside = i < p.cols / 4;
  float4 v = make_float4(0, 0, 0, 0), w = make_float4(0, 0, 0, 0);
  if (p.norm && inside) w = __ldg(reinterpret_cast<const float4*>(p.norm) + i);
  wait_for_previous();
  const int64_t source = p.row_ids ? p.row_ids[row] : row;
  if (inside) v = __ldcg(reinterpret_cast<const float4*>(p.x + source * p.cols) + i);
  if (p.norm) {
    const float squares = square_sum(v);
    const int64_t sums = (p.cols + kSquareColumns - 1) / kSquareColumns;
    if (inside && lane % 4 == 0) p.squares[row * sums + i / 4] = squares;
    v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
  }
  float values[4];
  skinny::round_four(v, values);
  skinny::pack_unit({reinterpret_cast<char*>(p.packed), row, unit, units}, values, lane);
}

__global__ void hidden_kernel(const __grid_constant__ HiddenParams p) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.ffn / 8) return;
  const int64_t from = static_cast<int64_t>(row) * p.stride / 8 + i;
  const Eight gate(__ldcg(reinterpret_cast<const uint4*>(p.gate) + from));
  const Eight up(__ldcg(reinterpret_cast<const uint4*>(p.up) + from));
  float hidden[8];
  const float factor = p.factors ? __ldcg(p.factors + row) : 1.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float g = gate.values[k] + (p.gate_bias ? __ldg(p.gate_bias + 8 * i + k) : 0.0f);
    const float u = up.values[k] + (p.up_bias ? __ldg(p.up_bias + 8 * i + k) : 0.0f);
    hidden[k] = activated(p.activation, g, u) * factor;
  }
  const uint2 low = round_four(hidden[0], hidden[1], hidden[2], hidden[3]);
  const uint2 high = round_four(hidden[4], hidden[5], hidden[6], hidden[7]);
  reinterpret_cast<uint4*>(p.hidden)[static_cast<int64_t>(row) * (p.ffn / 8) + i] =
      make_uint4(low.x, low.y, high.x, high.y);
}

__global__ void scale_kernel(float* values, int64_t count, float factor) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) values[i] *= factor;
}

__global__ void scale_by_kernel(float* values, int64_t count, const float* factor) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) values[i] *= __ldg(factor);
}

__global__ void cap_kernel(float* values, int64_t count, float cap) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) values[i] = soft_capped(values[i], cap);
}

/// A block has a row.
__global__ void temperature_kernel(const __grid_constant__ TemperatureParams p) {
  wait_for_previous();
  let_next_start();  // only now: attention, which comes next, relies on it
  __shared__ float factor;
  if (threadIdx.x == 0) {
    const double lengths = 1.0 + __ldg(p.positions + blockIdx.x) / p.length;  // whole ones
    factor = static_cast<float>(p.query_scale * (1.0 + static_cast<double>(p.scale) * log(lengths)));
  }
  __syncthreads();
  float* q = p.q + static_cast<int64_t>(blockIdx.x) * p.width;
  for (int i = threadIdx.x; i < p.width; i += blockDim.x) q[i] *= factor;
}

/// A block has a row.
__global__ void __launch_bounds__(kRowThreads) add_normed_kernel(const __grid_constant__ AddNormedParams p) {
  __shared__ float warps[kRowThreads / 32];
  let_next_start();
  wait_for_previous();
  const auto* given = reinterpret_cast<const float4*>(p.given + static_cast<int64_t>(blockIdx.x) * p.width);
  auto* x = reinterpret_cast<float4*>(p.x + static_cast<int64_t>(blockIdx.x) * p.width);
  float squares = 0;
  for (int i = threadIdx.x; i < p.width / 4; i += kRowThreads) {
    const float4 v = __ldcg(given + i);
    squares = add_squares(v, squares);
  }
  const float factor = block_norm_factor(squares, warps, p.width, p.epsilon);
  const float scale = p.scale ? __ldg(p.scale) : 1.0f;
  for (int i = threadIdx.x; i < p.width / 4; i += kRowThreads) {
    const float4 v = __ldcg(given + i), w = __ldg(reinterpret_cast<const float4*>(p.norm) + i);
    float4 sum = x[i];
    sum.x += v.x * factor * w.x;
    sum.y += v.y * factor * w.y;
    sum.z += v.z * factor * w.z;
    sum.w += v.w * factor * w.w;
    x[i] = make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale);
  }
}

__global__ void add_bias_kernel(float* x, const float* bias, int width) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < width) x[static_cast<int64_t>(blockIdx.y) * width + i] += __ldg(bias + i);
}

}  // namespace

void launch_angles(const AnglesParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  launch("the angles of a pass", Start::After, angles_kernel, dim3(params.rows), dim3(64), 0, stream, params);
}

void launch_embed(const __nv_bfloat16* embedding, const int32_t* tokens, int rows, int width, float* x,
                  cudaStream_t stream) {
  if (rows == 0) return;
  launch("the embedding", Start::Early, embed_kernel, dim3(rows), dim3(256), 0, stream, embedding, tokens, width, x);
}

void launch_round(const RoundParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  if (params.packed) {
    const int units = skinny::packed_units(params.cols);
    const dim3 grid((units + skinny::kPackingWarps - 1) / skinny::kPackingWarps, params.rows);
    launch("rounding and packing rows", Start::Early, round_packed_kernel, grid, dim3(skinny::kPackingWarps * 32), 0,
           stream, params, units);
    return;
  }
  launch("rounding rows", Start::Early, round_kernel, dim3(params.rows), dim3(kRowThreads), 0, stream, params);
}

void launch_hidden(const HiddenParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  const dim3 grid((params.ffn / 8 + 255) / 256, params.rows);
  launch("the MLP's gate", Start::Early, hidden_kernel, grid, dim3(256), 0, stream, params);
}

void launch_add_bias(float* x, const float* bias, int rows, int width, cudaStream_t stream) {
  if (rows == 0) return;
  launch("adding a bias", Start::Early, add_bias_kernel, dim3((width + 255) / 256, rows), dim3(256), 0, stream, x, bias,
         width);
}

void launch_scale(float* values, int64_t count, float factor, cudaStream_t stream) {
  if (count == 0) return;
  launch("scaling", Start::Early, scale_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0, stream,
         values, count, factor);
}

void launch_scale(float* values, int64_t count, const float* factor, cudaStream_t stream) {
  if (count == 0) return;
  launch("scaling", Start::Early, scale_by_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0,
         stream, values, count, factor);
}

void launch_cap(float* values, int64_t count, float cap, cudaStream_t stream) {
  if (count == 0) return;
  launch("a soft cap", Start::Early, cap_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0, stream,
         values, count, cap);
}

void launch_temperature(const TemperatureParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  launch("the temperature of attention", Start::Early, temperature_kernel, dim3(params.rows), dim3(256), 0, stream,
         params);
}

void launch_add_normed(const AddNormedParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  launch("a norm behind a product", Start::Early, add_normed_kernel, dim3(params.rows), dim3(kRowThreads), 0, stream,
         params);
}

}  // namespace tidal::cuda
