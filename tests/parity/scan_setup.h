// Batches over keys of channels of unlike ranges, for the tests of Scan layers.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "backend/reference/select.h"
#include "parity/setup.h"

namespace tidal::parity {

struct ScanShape {
  int group, kv_heads, head_dim;
  KvType type = KvType::Bf16;
};

/// Contexts on both sides of the edges of blocks, of a budget of 64, and of the pieces that a long one is cut into.
inline const std::vector<int> kScanContexts = {65, 66, 127, 128, 129, 191, 192, 1153, 2049};

struct ScanInputs {
  ScanInputs(const ScanShape& shape, const std::vector<int>& contexts, Random& random)
      : hp(attention_shape(shape.group, shape.kv_heads, shape.head_dim)),
        batch(decode_chunks(contexts), hp.vocab, random, false),
        cache(random_cache(hp, batch.blocks(), random, shape.type)),
        q(random.uniform(static_cast<size_t>(batch->rows()) * hp.q_width(), 3.0f)) {
    // Channels of unlike ranges, one of them far from 0, as models have them.
    for (Bf16* row = cache.values.data(); row < cache.values.data() + cache.values.size(); row += 2 * hp.head_dim) {
      for (int d = 0; d < hp.head_dim; d += 5) row[d] = to_bf16(to_float(row[d]) * (d == 10 ? 8.0f : 0.25f));
      row[3] = to_bf16(to_float(row[3]) + 30);
    }
    bytes = cache.bytes();
  }

  KvLayer layer() const {
    return {.data = const_cast<std::byte*>(bytes.data()),
            .kv_heads = hp.kv_heads,
            .head_dim = hp.head_dim,
            .type = cache.type};
  }

  const float* query(const Chunk& chunk, int head) const {
    return q.data() + static_cast<size_t>(chunk.first_row) * hp.q_width() + static_cast<size_t>(head) * hp.head_dim;
  }

  /// What head `head` ranks positions by, from the words of backend/sketch.h.
  reference::Scores scores(const Chunk& chunk, int head, int bits) const {
    const SketchLayout layout{hp.head_dim, bits};
    std::vector<std::byte> sketch(layout.bytes());
    reference::Scores result(chunk.context());
    const int filled = chunk.context() / kBlockTokens * kBlockTokens;
    for (int p = 0; p < filled; p += kBlockTokens) {
      sketch_block(layout, cache.type, layer().tile(chunk.blocks[p / kBlockTokens], head / hp.group()), sketch.data());
      sketch_scores(layout, query(chunk, head), sketch.data(), result.data() + p);
    }
    for (int p = filled; p < chunk.context(); ++p) {
      std::vector<float> key(hp.head_dim);
      const std::byte* row = layer().row(chunk.blocks[p / kBlockTokens], head / hp.group(), p % kBlockTokens);
      read_kv_row(cache.layout(), row, key.data(), nullptr);
      double sum = 0;
      for (int d = 0; d < hp.head_dim; ++d) sum += static_cast<double>(query(chunk, head)[d]) * key[d];
      result[p] = static_cast<float>(sum);
    }
    return result;
  }

  Hyperparameters hp;
  HostBatch batch;
  HostCache cache;
  std::vector<std::byte> bytes;  // of the cache
  std::vector<float> q;
};

/// The first positions of a set in [rows, sets, most_selected()], as Device::read() has them.
inline std::vector<int32_t> set_of(const std::vector<int32_t>& all, const Policy& policy, size_t set) {
  const auto first = all.begin() + static_cast<ptrdiff_t>(set * most_selected(policy));
  return {first, std::find(first, first + most_selected(policy), -1)};
}

}  // namespace tidal::parity
