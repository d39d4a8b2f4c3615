#include "backend/kv_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/half.h"

namespace tidal {
namespace {

constexpr uint16_t kHalfNan = 0x7e00, kHalfInfinity = 0x7c00;
constexpr uint32_t kFloatInfinity = 0x7f800000;

/// Codes of one block; returns its scale, fp16.
uint16_t quantise_block(const float* x, int count, int8_t* codes) {
  uint32_t top_bits = 0;  // as integers what is no number is above all others
  for (int i = 0; i < count; ++i) top_bits = std::max(top_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  const float step = std::bit_cast<float>(top_bits) / 127.0f;
  const uint16_t scale = top_bits >= kFloatInfinity ? kHalfNan : float_to_half(step);
  if (scale == 0 || scale >= kHalfInfinity) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return scale == 0 ? uint16_t{0} : kHalfNan;
  }
  const float inverse = 1.0f / step;
  for (int i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return scale;
}

void put_bf16(const float* from, int count, std::byte* to) {
  for (int i = 0; i < count; ++i) {
    const Bf16 value = to_bf16(from[i]);
    std::memcpy(to + sizeof value * static_cast<size_t>(i), &value, sizeof value);
  }
}

void get_bf16(const std::byte* from, int count, float* to) {
  for (int i = 0; i < count; ++i) {
    Bf16 value;
    std::memcpy(&value, from + sizeof value * static_cast<size_t>(i), sizeof value);
    to[i] = to_float(value);
  }
}

}  // namespace

void write_kv_row(const KvRowLayout& layout, const float* key, const float* value, std::byte* row) {
  const int dim = layout.head_dim;
  if (layout.type == KvType::Bf16) {
    put_bf16(key, dim, row);
    put_bf16(value, dim, row + sizeof(Bf16) * static_cast<size_t>(dim));
    return;
  }
  if (layout.type == KvType::F32) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(dim);
    std::memcpy(row, key, bytes);
    std::memcpy(row + bytes, value, bytes);
    return;
  }
  std::byte* scale = row + layout.scales_offset();
  auto* codes = reinterpret_cast<int8_t*>(row);
  for (const float* part : {key, value}) {
    for (int d = 0; d < dim; d += kKvScaleBlock, scale += sizeof(uint16_t)) {
      const uint16_t own = quantise_block(part + d, std::min(kKvScaleBlock, dim - d), codes + d);
      std::memcpy(scale, &own, sizeof own);
    }
    codes += dim;
  }
  std::memset(scale, 0, static_cast<size_t>(row + layout.bytes() - scale));
}

void read_kv_row(const KvRowLayout& layout, const std::byte* row, float* key, float* value) {
  const int dim = layout.head_dim;
  for (float* const part : {key, value}) {
    const int index = part == value ? 1 : 0;
    if (!part) continue;
    if (layout.type == KvType::Bf16) {
      get_bf16(row + sizeof(Bf16) * static_cast<size_t>(index) * dim, dim, part);
      continue;
    }
    if (layout.type == KvType::F32) {
      const size_t bytes = sizeof(float) * static_cast<size_t>(dim);
      std::memcpy(part, row + bytes * static_cast<size_t>(index), bytes);
      continue;
    }
    const auto* codes = reinterpret_cast<const int8_t*>(row) + static_cast<ptrdiff_t>(index) * dim;
    const std::byte* scales =
        row + layout.scales_offset() + sizeof(uint16_t) * static_cast<size_t>(index) * layout.scales();
    for (int d = 0; d < dim; d += kKvScaleBlock, scales += sizeof(uint16_t)) {
      uint16_t half;
      std::memcpy(&half, scales, sizeof half);
      const float scale = half_to_float(half);
      const int end = std::min(dim, d + kKvScaleBlock);
      for (int i = d; i < end; ++i) part[i] = scale * static_cast<float>(codes[i]);
    }
  }
}

}  // namespace tidal
