// Two floats to bf16 in a word.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace tidal::cuda {

/// To the nearest, ties to even; `low` in the lower half.
__device__ inline uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&two);
}

}  // namespace tidal::cuda
