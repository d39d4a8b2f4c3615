#include "support/engine_attention.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/backend.h"
#include "model/rope.h"

namespace tidal::test {
namespace {

/// The cache's tiles one behind the other.
std::vector<std::byte> packed_tiles(const tidal_attention_cache& cache, int64_t tiles, int64_t bytes) {
  std::vector<std::byte> packed(static_cast<size_t>(tiles * bytes));
  for (int64_t i = 0; i < tiles; ++i) {
    std::memcpy(packed.data() + i * bytes, static_cast<const std::byte*>(cache.rows) + i * cache.tile_stride,
                static_cast<size_t>(bytes));
  }
  return packed;
}

/// Memory of a backend with what a vector has, or zeros.
template <typename T>
Buffer copied(Backend& backend, const std::vector<T>& from) {
  Buffer buffer = backend.allocate(from.size() * sizeof(T), "test");
  backend.write(buffer.as<std::byte>(), reinterpret_cast<const std::byte*>(from.data()), from.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> copied_back(Backend& backend, const Buffer& from, size_t count) {
  std::vector<T> to(count);
  backend.read(reinterpret_cast<std::byte*>(to.data()), from.as<std::byte>(), count * sizeof(T));
  return to;
}

Hyperparameters shape_of(const tidal_attention_options& options) {
  Hyperparameters hp;
  hp.architecture = "llama";
  hp.layers = 1;
  hp.ffn = 64;
  hp.vocab = 100;
  hp.heads = options.heads;
  hp.kv_heads = options.kv_heads;
  hp.head_dim = options.head_dim;
  hp.width = options.heads * options.head_dim;
  hp.rope = make_rope(Rope::Pairing::Adjacent, options.head_dim, 10000, {}, {});
  return hp;
}

}  // namespace

size_t element_bytes(int32_t dtype) { return dtype == TIDAL_ATTENTION_BF16 ? sizeof(Bf16) : sizeof(float); }

float element_at(int32_t dtype, const std::byte* elements, size_t index) {
  Bf16 half;
  float whole;
  std::memcpy(&half, elements + index * element_bytes(dtype), sizeof half);
  if (dtype == TIDAL_ATTENTION_BF16) return to_float(half);
  std::memcpy(&whole, elements + index * sizeof whole, sizeof whole);
  return whole;
}

void put_element(int32_t dtype, float value, std::byte* elements, size_t index) {
  const Bf16 half = to_bf16(value);
  const void* const from = dtype == TIDAL_ATTENTION_BF16 ? static_cast<const void*>(&half) : &value;
  std::memcpy(elements + index * element_bytes(dtype), from, element_bytes(dtype));
}

EngineAttention engine_attention(const char* name, const tidal_attention_options& options,
                                 const tidal_attention_cache& cache, std::span<const float> q,
                                 std::span<const int32_t> block_table, int table_stride,
                                 std::span<const int32_t> contexts) {
  static const std::vector<Role> kRoles = {Role::Scan};
  const KvType type = options.dtype == TIDAL_ATTENTION_BF16 ? KvType::Bf16 : KvType::F32;
  const SketchLayout layout{options.head_dim, options.sketch_bits};
  const int64_t tiles = int64_t{cache.blocks} * options.kv_heads;
  const auto backend = make_backend(name, 1);
  const std::vector<std::byte> tile_bytes =
      packed_tiles(cache, tiles, kBlockTokens * KvRowLayout{type, options.head_dim}.bytes());
  const Buffer rows = copied(*backend, tile_bytes);
  const Buffer sketches = backend->allocate(static_cast<size_t>(tiles * layout.bytes()), "test");
  KvLayer kv;
  kv.data = rows.as<std::byte>();
  kv.kv_heads = options.kv_heads;
  kv.head_dim = options.head_dim;
  kv.type = type;
  kv.sketches[static_cast<size_t>(options.sketch_bits) / 2] = sketches.as<std::byte>();
  Policy policy;
  policy.scope = Scope::Kv;
  policy.pooling = Pooling::Sum;
  policy.budget = options.budget;
  policy.sinks = policy.recent = 0;
  policy.sketch_bits = options.sketch_bits;

  // Sparse chunks come first in a batch.
  std::vector<size_t> order(contexts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_partition(order.begin(), order.end(), [&](size_t r) { return contexts[r] > policy.budget; });
  std::vector<Chunk> chunks;
  for (const size_t r : order) {
    Chunk chunk;
    chunk.first_row = static_cast<int>(chunks.size());
    chunk.rows = 1;
    chunk.position = contexts[r] - 1;
    chunk.cached = contexts[r];
    chunk.blocks =
        block_table.subspan(r * static_cast<size_t>(table_stride), static_cast<size_t>(blocks_for(contexts[r])));
    if (contexts[r] > policy.budget) {
      chunk.roles = kRoles;
      chunk.policy = policy;
    }
    backend->sketch(kv, chunk.blocks.first(static_cast<size_t>(contexts[r] / kBlockTokens)));
    chunks.push_back(chunk);
  }
  const int count = static_cast<int>(chunks.size()), width = options.heads * options.head_dim;
  const int most = most_selected(policy);
  const Hyperparameters hp = shape_of(options);
  const std::vector<Token> tokens(chunks.size());
  std::vector<int32_t> positions;
  for (const Chunk& chunk : chunks) positions.push_back(chunk.position);
  backend->reserve(hp, count, options.max_context);
  const Batch batch{tokens, positions, chunks, {}};
  const size_t units = chunks.size() * static_cast<size_t>(options.kv_heads);
  const auto wide = static_cast<size_t>(width), sets = static_cast<size_t>(options.kv_heads);
  std::vector<float> ordered;
  for (const size_t r : order) {
    const auto row = q.subspan(r * wide, wide);
    ordered.insert(ordered.end(), row.begin(), row.end());
  }
  const Buffer queries = copied(*backend, ordered);
  const Buffer out = copied(*backend, std::vector<float>(q.size()));
  const Buffer selected = copied(*backend, std::vector<int32_t>(units * static_cast<size_t>(most)));
  const Buffer counts = copied(*backend, std::vector<int32_t>(units));
  backend->begin(hp, batch);
  backend->attend(batch, 0, {queries.as<float>(), count, width}, kv,
                  {selected.as<int32_t>(), counts.as<int32_t>(), options.kv_heads * most, options.kv_heads},
                  {out.as<float>(), count, width});
  const std::vector<float> outs = copied_back<float>(*backend, out, q.size());
  const auto lists = copied_back<int32_t>(*backend, selected, units * static_cast<size_t>(most));
  const auto lengths = copied_back<int32_t>(*backend, counts, units);
  EngineAttention result{outs, lists, lengths};
  for (size_t i = 0; i < order.size(); ++i) {
    std::copy_n(outs.data() + i * wide, wide, result.out.data() + order[i] * wide);
    std::copy_n(lists.data() + i * sets * static_cast<size_t>(most), sets * static_cast<size_t>(most),
                result.positions.data() + order[i] * sets * static_cast<size_t>(most));
    std::copy_n(lengths.data() + i * sets, sets, result.counts.data() + order[i] * sets);
  }
  return result;
}

}  // namespace tidal::test
