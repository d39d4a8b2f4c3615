// Sums over a warp: of integers, which come out the same in any order, and of floats in one order.
#pragma once

#include <cstdint>

namespace tidal::cuda {

/// Sum of `value` over all lanes. All of them call it.
__device__ inline unsigned long long sum_over_warp(unsigned long long value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

/// The same of floats: every lane gets the same bits.
__device__ inline float sum_over_warp(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, apart));
  return value;
}

/// Sum of `value` over the lanes up to this one. All of them call it.
template <typename Value>
__device__ inline Value sum_up_to_lane(Value value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const Value other = __shfl_up_sync(0xffffffffu, value, apart);
    if (lane >= apart) value += other;
  }
  return value;
}

}  // namespace tidal::cuda
