#include "support/engine_attention.h"

#include <cstring>

#include "backend/backend.h"

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

Hyperparameters shape_of(const tidal_attention_options& options) {
  Hyperparameters hp;
  hp.layers = hp.vocab = 1;
  hp.heads = options.heads;
  hp.kv_heads = options.kv_heads;
  hp.head_dim = options.head_dim;
  hp.width = options.heads * options.head_dim;
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
  std::vector<std::byte> rows = packed_tiles(cache, tiles, kBlockTokens * KvRowLayout{type, options.head_dim}.bytes());
  std::vector<std::byte> sketches(static_cast<size_t>(tiles * layout.bytes()));
  KvLayer kv;
  kv.data = rows.data();
  kv.kv_heads = options.kv_heads;
  kv.head_dim = options.head_dim;
  kv.type = type;
  kv.sketches[static_cast<size_t>(options.sketch_bits) / 2] = sketches.data();
  Policy policy;
  policy.scope = Scope::Kv;
  policy.pooling = Pooling::Sum;
  policy.budget = options.budget;
  policy.sinks = policy.recent = 0;
  policy.sketch_bits = options.sketch_bits;

  const auto backend = make_backend(name, 1);
  std::vector<Chunk> chunks;
  for (size_t r = 0; r < contexts.size(); ++r) {
    Chunk chunk;
    chunk.first_row = static_cast<int>(r);
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
  const std::vector<int32_t> positions(chunks.size());
  backend->reserve(hp, count, options.max_context);
  const Batch batch{tokens, positions, chunks, {}};
  backend->begin(hp, batch);
  EngineAttention result;
  result.out.resize(q.size());
  result.positions.resize(chunks.size() * static_cast<size_t>(options.kv_heads) * static_cast<size_t>(most));
  result.counts.resize(chunks.size() * static_cast<size_t>(options.kv_heads));
  std::vector<float> queries(q.begin(), q.end());
  backend->attend(batch, 0, {queries.data(), count, width}, kv,
                  {result.positions.data(), result.counts.data(), options.kv_heads * most, options.kv_heads},
                  {result.out.data(), count, width});
  return result;
}

}  // namespace tidal::test
