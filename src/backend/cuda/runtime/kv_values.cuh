// Single elements of the rows of a KV cache (KvRowLayout).
#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "backend/kv_row.h"
#include "backend/value_sketch.h"

namespace tidal::cuda {

/// Where things are in a sketch of values (ValueSketchLayout), as the host knows it.
struct ValueSketchPlaces {
  explicit ValueSketchPlaces(int head_dim)
      : row_bytes(ValueSketchLayout{head_dim}.row_bytes()),
        scales(ValueSketchLayout{head_dim}.scales_offset()),
        codes(ValueSketchLayout{head_dim}.codes_offset()),
        bytes(ValueSketchLayout{head_dim}.bytes()) {}

  int row_bytes, scales, codes;
  int64_t bytes;

#ifdef __CUDACC__
  /// The byte of channel d of position p, and where in it the code begins.
  __device__ int byte(int p, int d) const {
    return codes + p * row_bytes + d / ValueSketchLayout::kGroup * ValueSketchLayout::kPlane +
           d % ValueSketchLayout::kPlane;
  }
  __device__ int shift(int d) const { return d % ValueSketchLayout::kGroup / ValueSketchLayout::kPlane * 2; }
#endif
};

__device__ inline float bf16_at(const std::byte* from, int index) {
  return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(from)[index]) << 16);
}

/// Element d of the key of a row (kHalf 0), or of its value (1).
template <int kHalf>
__device__ inline float kv_element(const KvRowLayout& rows, const std::byte* row, int d) {
  const int dim = rows.head_dim;
  if (rows.type != KvType::Q8) return bf16_at(row, kHalf * dim + d);
  const auto* const scales =
      reinterpret_cast<const __half*>(row + 2 * dim) + kHalf * ((dim + kKvScaleBlock - 1) / kKvScaleBlock);
  return __fmul_rn(__half2float(scales[d / kKvScaleBlock]),
                   static_cast<float>(reinterpret_cast<const int8_t*>(row)[kHalf * dim + d]));
}
__device__ inline float key_at(const KvRowLayout& rows, const std::byte* row, int d) {
  return kv_element<0>(rows, row, d);
}
__device__ inline float value_at(const KvRowLayout& rows, const std::byte* row, int d) {
  return kv_element<1>(rows, row, d);
}

}  // namespace tidal::cuda
