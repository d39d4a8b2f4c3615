// Float32 to bf16 on the device, as core/bf16.h rounds.
#pragma once

#include <cstdint>

namespace tidal::cuda {

__device__ inline uint32_t to_bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

}  // namespace tidal::cuda
