// Sketches of the values of whole blocks, bit for bit those of sketch_values() in backend/value_sketch.cpp: the same
// operations in the same order, none of them fused. One CTA a block and KV head; a thread has channels of the mean,
// then 16 lanes a row.
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/runtime/kv_values.cuh"
#include "backend/cuda/scan/sketch_values.h"
#include "backend/cuda/weights/round_bits.cuh"
#include "backend/hyperparameters.h"

namespace tidal::cuda {
namespace {

constexpr int kValueThreads = 256;
constexpr int kValueLanes = 16;  // of a row
constexpr int kLaneValues = kMostHeadDim / kValueLanes;

/// The sum of 16 lanes, by halves.
__device__ float add_halves(float sum) {
#pragma unroll
  for (int half = kValueLanes / 2; half > 0; half /= 2) {
    sum = __fadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, half, kValueLanes));
  }
  return __shfl_sync(0xffffffffu, sum, 0, kValueLanes);
}

/// Codes and scale of a row, by 16 lanes.
__device__ void sketch_row(const KvRowLayout& rows, const ValueSketchPlaces& layout, const std::byte* row, int p,
                           const float* mean, std::byte* sketch) {
  const int lane = threadIdx.x % kValueLanes, dim = rows.head_dim;
  float differences[kLaneValues];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const int d = i * kValueLanes + lane;
    if (d >= dim) break;
    differences[i] = __fsub_rn(value_at(rows, row, d), mean[d]);
    squares = __fadd_rn(squares, __fmul_rn(differences[i], differences[i]));
  }
  const float rms = __fsqrt_rn(__fdiv_rn(add_halves(squares), static_cast<float>(dim)));
  const float inverse = rms > 0 ? __fdiv_rn(1.0f, rms) : 0.0f;
  float products = 0, code_squares = 0;
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const int d = i * kValueLanes + lane;
    if (d >= dim) break;
    float step = __fadd_rn(__fmul_rn(differences[i], inverse), 2.0f);
    step = 0.0f < step ? step : 0.0f;  // NaN becomes 0
    step = 3.0f < step ? 3.0f : step;
    const int code = static_cast<int>(step);
    const float centred = __fsub_rn(static_cast<float>(code), 1.5f);
    products = __fadd_rn(products, __fmul_rn(differences[i], centred));
    code_squares = __fadd_rn(code_squares, __fmul_rn(centred, centred));
    codes |= static_cast<uint32_t>(code) << layout.shift(d);
    if (i % 4 == 3 || d + kValueLanes >= dim) {
      sketch[layout.byte(p, d)] = static_cast<std::byte>(codes);
      codes = 0;
    }
  }
  const float scale = __fdiv_rn(add_halves(products), add_halves(code_squares));
  if (lane == 0) reinterpret_cast<uint16_t*>(sketch + layout.scales)[p] = static_cast<uint16_t>(to_bf16_bits(scale));
}

/// Grid (blocks, KV heads, chunks).
__global__ void __launch_bounds__(kValueThreads)
    value_sketch_kernel(const std::byte* kv, KvRowLayout rows, int64_t row_bytes, int64_t tile_stride,
                        std::byte* sketches, ValueSketchPlaces layout, const __grid_constant__ SketchedBlocks blocks) {
  __shared__ float mean[kMostHeadDim];
  wait_for_kernels_before();
  const int64_t block = blocks.own_block();
  if (block < 0) return;
  const int64_t index = block * gridDim.y + blockIdx.y;
  const std::byte* const tile = kv + index * tile_stride;
  std::byte* const sketch = sketches + index * layout.bytes;
  for (int d = threadIdx.x; d < rows.head_dim; d += kValueThreads) {
    float sum = 0;
#pragma unroll 16
    for (int p = 0; p < kBlockTokens; ++p) sum = __fadd_rn(sum, value_at(rows, tile + p * row_bytes, d));
    const auto rounded = static_cast<uint16_t>(to_bf16_bits(__fdiv_rn(sum, static_cast<float>(kBlockTokens))));
    reinterpret_cast<uint16_t*>(sketch)[d] = rounded;
    mean[d] = __uint_as_float(static_cast<uint32_t>(rounded) << 16);
  }
  __syncthreads();
  for (int p = threadIdx.x / kValueLanes; p < kBlockTokens; p += kValueThreads / kValueLanes) {
    sketch_row(rows, layout, tile + p * row_bytes, p, mean, sketch);
  }
}

}  // namespace

void launch_value_sketches(const KvLayer& kv, const SketchedBlocks& blocks, dim3 grid, cudaStream_t stream) {
  if (!kv.value_sketches || grid.x == 0 || grid.z == 0) return;
  launch("sketches of values", Start::Early, value_sketch_kernel, grid, dim3(kValueThreads), 0, stream, kv.data,
         kv.row_layout(), kv.row_bytes(), kv.bytes_between_tiles(), kv.value_sketches, ValueSketchPlaces(kv.head_dim),
         blocks);
}

}  // namespace tidal::cuda
