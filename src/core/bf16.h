// bfloat16: the storage type of the KV cache.
#pragma once

#include <bit>
#include <cstdint>

namespace tidal {

/// The upper half of an IEEE float32. Storage only: arithmetic happens in float32.
struct Bf16 {
  uint16_t bits = 0;
};

inline float to_float(Bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

/// Rounds to nearest, ties to even. NaN stays NaN (its quiet bit is set).
inline Bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace tidal
