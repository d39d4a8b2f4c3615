// The engine's own attention over a cache of include/tidal_attention.h: what its implementation is held against.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tidal_attention.h"

namespace tidal::test {

struct EngineAttention {
  std::vector<float> out;          ///< [rows, heads * head_dim]
  std::vector<int32_t> positions;  ///< [rows, kv_heads, budget + 63]
  std::vector<int32_t> counts;     ///< [rows, kv_heads]; 0 where a row read its whole context
};

/// A pass of a backend of the engine over a copy of the cache, tiles and sketches in ranges of their own as the engine
/// has them; the sketches are made anew. q: [rows, heads * head_dim]; block_table: [rows, table_stride].
EngineAttention engine_attention(const char* backend, const tidal_attention_options& options,
                                 const tidal_attention_cache& cache, std::span<const float> q,
                                 std::span<const int32_t> block_table, int table_stride,
                                 std::span<const int32_t> contexts);

/// What a number of the options' dtype is in float32, and back.
float element_at(int32_t dtype, const std::byte* elements, size_t index);
void put_element(int32_t dtype, float value, std::byte* elements, size_t index);
size_t element_bytes(int32_t dtype);

}  // namespace tidal::test
