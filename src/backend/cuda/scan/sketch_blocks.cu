// Sketches of whole blocks, bit for bit those of sketch_block() in backend/sketch.cpp: the same operations in the same
// order, none of them fused. One CTA a block and KV head; a thread has a channel, and then the
// words that four channels share.
#include "backend/cuda/scan/sketch_blocks.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>

#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/scan/sketch_values.h"
#include "backend/cuda/weights/round_bits.cuh"

namespace tidal::cuda {
namespace {

constexpr int kWidths = kSketchBits.size();
static_assert(kSketchBits == std::array<int, 3>{1, 2, 4});  // 1 << index

/// Layouts of the widths, as the host knows them.
struct Widths {
  std::byte* sketches[kWidths];  // or null
  int vectors[kWidths];
  int64_t stride[kWidths];
};

/// Grid (blocks, KV heads, chunks), head_dim threads, at most kMostDim.
template <int kMostDim>
__global__ void __launch_bounds__(kMostDim)
    sketch_kernel(const std::byte* kv, KvRowLayout rows, int64_t row_bytes, int64_t tile_stride,
                  const __grid_constant__ SketchedBlocks blocks, const __grid_constant__ Widths widths) {
  __shared__ __align__(4) uint8_t codes[kBlockTokens][kMostDim];
  wait_for_kernels_before();
  const int64_t block = blocks.own_block();
  if (block < 0) return;
  const int64_t index = block * gridDim.y + blockIdx.y;
  const int d = threadIdx.x, dim = rows.head_dim;
  const std::byte* const tile = kv + index * tile_stride;
  float keys[kBlockTokens];
  if (rows.type == KvType::Q8) {
    const std::byte* const scales = tile + 2 * dim + d / kKvScaleBlock * 2;
#pragma unroll
    for (int p = 0; p < kBlockTokens; ++p) {
      const float scale = __half2float(*reinterpret_cast<const __half*>(scales + p * row_bytes));
      keys[p] = __fmul_rn(scale, static_cast<float>(reinterpret_cast<const int8_t*>(tile + p * row_bytes)[d]));
    }
  } else {
    const auto* const channel = reinterpret_cast<const uint16_t*>(tile) + d;
#pragma unroll
    for (int p = 0; p < kBlockTokens; ++p) keys[p] = __uint_as_float(static_cast<uint32_t>(channel[p * 2 * dim]) << 16);
  }
  // Comparisons as std::min and std::max have them, for what is no number.
  float low = keys[0], high = keys[0];
#pragma unroll
  for (int p = 0; p < kBlockTokens; ++p) {
    low = keys[p] < low ? keys[p] : low;
    high = high < keys[p] ? keys[p] : high;
  }
  const float range = __fsub_rn(high, low);
  for (int w = 0; w < kWidths; ++w) {
    std::byte* const sketch = widths.sketches[w];
    if (!sketch) continue;
    const int bits = 1 << w, planes = 8 / bits, vectors = widths.vectors[w];
    const auto levels = static_cast<float>(1 << bits), most = static_cast<float>((1 << bits) - 1);
    const float inverse = range > 0 ? __fdiv_rn(levels, range) : 0.0f;
    float code_sum = 0, square_sum = 0, key_sum = 0, product_sum = 0;
#pragma unroll
    for (int p = 0; p < kBlockTokens; ++p) {
      float step = __fmul_rn(__fsub_rn(keys[p], low), inverse);
      step = 0.0f < step ? step : 0.0f;  // NaN becomes 0
      step = most < step ? most : step;
      const int code = static_cast<int>(step);
      const auto real = static_cast<float>(code);
      code_sum = __fadd_rn(code_sum, real);
      square_sum = __fadd_rn(square_sum, __fmul_rn(real, real));
      key_sum = __fadd_rn(key_sum, keys[p]);
      product_sum = __fadd_rn(product_sum, __fmul_rn(real, keys[p]));
      codes[p][d] = static_cast<uint8_t>(code);
    }
    constexpr float kCount = kBlockTokens;
    const float spread = __fsub_rn(__fmul_rn(kCount, square_sum), __fmul_rn(code_sum, code_sum));
    const float slope =
        spread > 0 ? __fdiv_rn(__fsub_rn(__fmul_rn(kCount, product_sum), __fmul_rn(code_sum, key_sum)), spread) : 0.0f;
    const auto scale = static_cast<uint16_t>(to_bf16_bits(slope));
    const float real_scale = __uint_as_float(static_cast<uint32_t>(scale) << 16);
    const float minimum = __fdiv_rn(__fsub_rn(key_sum, __fmul_rn(real_scale, code_sum)), kCount);
    auto* const own = reinterpret_cast<uint16_t*>(sketch + index * widths.stride[w]);
    own[d] = static_cast<uint16_t>(to_bf16_bits(minimum));
    own[dim + d] = scale;
    __syncthreads();
    // A word: 4 channels of one position, the planes on top of each other.
    auto* const words = reinterpret_cast<uint32_t*>(own + 2 * dim);
    for (int i = threadIdx.x; i < kBlockTokens * vectors; i += blockDim.x) {
      const int stripe = i / (16 * vectors), vector = i / 16 % vectors, p = 16 * stripe + i % 16;
      uint32_t word = 0;
      for (int j = 0; j < planes; ++j) {
        const int first = (vector * planes + j) * SketchLayout::kQuad;
        if (first < dim) word |= *reinterpret_cast<const uint32_t*>(&codes[p][first]) << j * bits;
      }
      words[i] = word;
    }
    __syncthreads();
  }
}

void launch_sketches(const KvLayer& kv, const SketchedBlocks& blocks, dim3 grid, cudaStream_t stream) {
  launch_value_sketches(kv, blocks, grid, stream);
  Widths widths = {};
  bool any = false;
  for (int w = 0; w < kWidths; ++w) {
    const SketchLayout layout{kv.head_dim, kSketchBits[w]};
    widths.sketches[w] = kv.sketches[w];
    widths.vectors[w] = layout.vectors();
    widths.stride[w] = kv.bytes_between_sketches(kSketchBits[w]);
    any = any || kv.sketches[w];
  }
  if (!any || grid.x == 0 || grid.z == 0) return;
  const auto kernel = kv.head_dim <= 256 ? sketch_kernel<256> : sketch_kernel<512>;
  launch("sketches", Start::Early, kernel, grid, dim3(kv.head_dim), 0, stream, kv.data, kv.row_layout(), kv.row_bytes(),
         kv.bytes_between_tiles(), blocks, widths);
}

}  // namespace

void launch_sketch_blocks(const KvLayer& kv, const BlockId* blocks, int count, cudaStream_t stream) {
  SketchedBlocks list;
  list.listed = blocks;
  launch_sketches(kv, list, dim3(count, kv.kv_heads, 1), stream);
}

void launch_sketch_slots(const KvLayer& kv, const int64_t* slots, int count, cudaStream_t stream) {
  SketchedBlocks filled;
  filled.slots = slots;
  launch_sketches(kv, filled, dim3(count, kv.kv_heads, 1), stream);
}

void launch_sketch_filled(const KvLayer& kv, const StepTables& tables, int first_chunk, int chunks, int most_rows,
                          cudaStream_t stream) {
  SketchedBlocks filled;
  filled.tables = tables;
  filled.first_chunk = first_chunk;
  // A chunk of n rows ends in at most so many blocks.
  launch_sketches(kv, filled, dim3((most_rows + kBlockTokens - 2) / kBlockTokens + 1, kv.kv_heads, chunks), stream);
}

}  // namespace tidal::cuda
