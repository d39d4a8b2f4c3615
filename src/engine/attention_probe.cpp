#include "engine/attention_probe.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tidal {
namespace {

template <typename Value>
std::vector<Value> read_back(Backend& backend, const Value* from, size_t count) {
  std::vector<Value> host(count);
  backend.read(reinterpret_cast<std::byte*>(host.data()), reinterpret_cast<const std::byte*>(from),
               sizeof(Value) * count);
  return host;
}

/// Share of softmax(scores) at `positions`, ascending.
float softmax_share(const std::vector<float>& scores, std::span<const int32_t> positions) {
  float top = -std::numeric_limits<float>::infinity();
  for (const float score : scores) top = std::fmax(top, score);
  double all = 0, held = 0;
  for (const float score : scores) all += std::exp(static_cast<double>(score) - top);
  for (const int32_t position : positions) held += std::exp(static_cast<double>(scores[position]) - top);
  return static_cast<float>(held / all);
}

}  // namespace

double LayerAttention::mean_mass() const {
  return mass.empty() ? 1.0 : std::accumulate(mass.begin(), mass.end(), 0.0) / static_cast<double>(mass.size());
}

AttentionProbe::AttentionProbe(Engine& engine)
    : engine_(engine), backend_(engine.pool().backend()), hp_(engine.model().hp), layers_(hp_.layers) {
  engine.set_observer(this);
}

void AttentionProbe::read_selection(const Chunk& chunk, const Selection& selection) {
  const int units = scope_units(chunk.policy.scope, hp_.heads, hp_.kv_heads);
  selected_.resize(units);
  for (int unit = 0; unit < units; ++unit) {
    const int count = read_back(backend_, &selection.count(chunk, unit), 1)[0];
    selected_[unit] = read_back(backend_, selection.unit(chunk, unit), count);
  }
}

void AttentionProbe::measure(const Chunk& chunk, const Rows& q, KvLayer kv, int kv_head, std::vector<float>& mass) {
  const int dim = kv.head_dim, group = hp_.group(), first_head = kv_head * group;
  const auto queries =
      read_back(backend_, q.row(chunk.first_row) + int64_t{first_head} * dim, static_cast<size_t>(group) * dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  std::vector<std::vector<float>> scores(group, std::vector<float>(chunk.context()));
  std::vector<float> key(dim);
  for (int begin = 0; begin < chunk.context(); begin += kBlockTokens) {
    const auto tile = read_back(backend_, kv.tile(chunk.blocks[begin / kBlockTokens], kv_head), kv.tile_elements());
    for (int p = begin; p < std::min(chunk.context(), begin + kBlockTokens); ++p) {
      const Bf16* row = tile.data() + static_cast<ptrdiff_t>(p - begin) * 2 * dim;
      for (int d = 0; d < dim; ++d) key[d] = to_float(row[d]);
      for (int h = 0; h < group; ++h) {
        const float* query = queries.data() + static_cast<ptrdiff_t>(h) * dim;
        scores[h][p] = scale * std::inner_product(key.begin(), key.end(), query, 0.0f);
      }
    }
  }
  const int units = static_cast<int>(selected_.size());
  for (int h = 0; h < group; ++h) {
    const int head = first_head + h;
    mass[head] = softmax_share(scores[h], selected_[static_cast<size_t>(head) * units / hp_.heads]);
  }
}

void AttentionProbe::attended(int layer, const Batch& batch, Rows q, KvLayer kv, const Selection& selection) {
  const auto sparse = std::find_if(batch.chunks.begin(), batch.chunks.end(), [](const Chunk& c) { return c.sparse(); });
  const Chunk& chunk = sparse == batch.chunks.end() ? batch.chunks[0] : *sparse;
  if (chunk.rows != 1) return;
  LayerAttention& attention = layers_[layer];
  attention.role = chunk.role(layer);
  attention.mass.assign(hp_.heads, 1.0f);
  attention.selected.clear();
  if (attention.role == Role::Select) {
    read_selection(chunk, selection);
    attention.selected = selected_;
  } else if (attention.role == Role::Sparse) {
    for (int h = 0; h < hp_.kv_heads; ++h) measure(chunk, q, kv, h, attention.mass);
  }
}

}  // namespace tidal
