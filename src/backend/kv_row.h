// A row of the KV cache, K and V of one position and KV head, in the types that a cache may have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bf16.h"

namespace tidal {

/// What K and V are kept in.
enum class KvType : uint8_t {
  Bf16,  ///< [K head_dim | V head_dim], bf16
  Q8,    ///< 8 bits an element, as ggml's q8_0 has them: KvRowLayout
  F32,   ///< [K head_dim | V head_dim], float32, on the host alone: what a caller of tidal_attention.h may have
};
inline constexpr const char* kv_type_name(KvType type) {
  return type == KvType::Bf16 ? "bf16" : type == KvType::Q8 ? "q8_0" : "f32";
}

/// Elements that share a scale; fewer at the end of a head that is no multiple of it.
inline constexpr int kKvScaleBlock = 32;

/// Where things are in a row. With 8 bits: the codes of K [head_dim] and of V [head_dim], int8, then the scales of K
/// and those of V [scales()] each, fp16; an element is scale * code. Zeros up to a multiple of 16 bytes, so that rows
/// are copied in pieces of 16. The row stays in one piece, since what selects positions reads single rows.
struct KvRowLayout {
  KvType type = KvType::Bf16;
  int head_dim = 0;  ///< multiple of 16

  constexpr int scales() const { return (head_dim + kKvScaleBlock - 1) / kKvScaleBlock; }  ///< of K, and of V
  constexpr int scales_offset() const { return 2 * head_dim; }
  constexpr int64_t bytes() const {
    if (type != KvType::Q8) return int64_t{type == KvType::Bf16 ? 4 : 8} * head_dim;
    return (int64_t{2} * head_dim + int64_t{4} * scales() + 15) / 16 * 16;
  }
};

/// Writes a row, from `key` and `value` [head_dim] each; the same bits on every backend. With 8 bits, of a block x:
///   top = max |x|; d = top / 127; scale = d rounded to fp16; code = x * (1 / d), rounded to the nearest integer, ties
///   to even. Where the scale is 0 codes are; where x holds what is no number, or the scale is no fp16, the scale is
///   NaN and codes are 0: then the whole block is no number.
/// A row that is read and written again stays what it is, bit for bit.
void write_kv_row(const KvRowLayout& layout, const float* key, const float* value, std::byte* row);
/// Its elements, exactly: `key` and `value` [head_dim] each; a null one is not wanted.
void read_kv_row(const KvRowLayout& layout, const std::byte* row, float* key, float* value);

}  // namespace tidal
