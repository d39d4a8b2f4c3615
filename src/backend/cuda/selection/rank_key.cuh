// Floats in the order of unsigned integers.
#pragma once

#include <cstdint>

namespace tidal::cuda {

/// Order-preserving: a number is below another if and only if its key is smaller. -0 is 0. Not for NaN.
__device__ inline uint32_t number_key(float score) {
  const uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The same with NaN as the lowest.
__device__ inline uint32_t rank_key(float score) { return score != score ? 0 : number_key(score); }

/// The number whose key this is.
__device__ inline float score_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

}  // namespace tidal::cuda
