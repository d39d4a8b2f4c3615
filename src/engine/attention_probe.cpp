#include "engine/attention_probe.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "backend/reference/math.h"
#include "backend/reference/select.h"
#include "engine/read_back.h"

namespace tidal {
namespace {

/// Share of softmax(scores * scale) at `positions`.
float softmax_share(const std::vector<float>& scores, double scale, std::span<const int32_t> positions) {
  float top = -std::numeric_limits<float>::infinity();
  for (const float score : scores) top = std::fmax(top, score);
  double all = 0, held = 0;
  const auto weight = [&](float score) { return std::exp((static_cast<double>(score) - top) * scale); };
  for (const float score : scores) all += weight(score);
  for (const int32_t position : positions) held += weight(scores[position]);
  return static_cast<float>(held / all);
}

/// Share of the ascending `wanted` that the ascending `chosen` hold.
float share_of(std::span<const int32_t> wanted, const std::vector<int32_t>& chosen) {
  if (wanted.empty()) return 1;
  std::vector<int32_t> both;
  std::set_intersection(wanted.begin(), wanted.end(), chosen.begin(), chosen.end(), std::back_inserter(both));
  return static_cast<float>(both.size()) / static_cast<float>(wanted.size());
}

}  // namespace

double LayerAttention::mean_mass() const {
  return mass.empty() ? 1.0 : std::accumulate(mass.begin(), mass.end(), 0.0) / static_cast<double>(mass.size());
}

AttentionProbe::AttentionProbe(Engine& engine, bool scored)
    : engine_(engine),
      scored_(scored),
      backend_(engine.pool().backend()),
      hp_(engine.model().hp),
      layers_(hp_.layers),
      scores_(hp_.heads) {
  engine.set_observer(this);
}

std::vector<float> AttentionProbe::queries(const Chunk& chunk, const Rows& q, int head_dim, int kv_head) {
  const int64_t count = int64_t{hp_.group()} * head_dim;
  return read_back(backend_, q.row(chunk.first_row) + kv_head * count, static_cast<size_t>(count));
}

void AttentionProbe::score(const Chunk& chunk, const Rows& q, KvLayer kv, int kv_head) {
  const int dim = kv.head_dim, group = hp_.group(), first_head = kv_head * group;
  const std::vector<float> queries = this->queries(chunk, q, dim, kv_head);
  for (int h = 0; h < group; ++h) scores_[first_head + h].resize(chunk.context());
  std::vector<float> key(dim);
  for (int begin = 0; begin < chunk.context(); begin += kBlockTokens) {
    const std::byte* const tile = kv.tile(chunk.blocks_of(kv)[begin / kBlockTokens], kv_head);
    const std::vector<std::byte> rows = read_back(backend_, tile, static_cast<size_t>(kv.tile_bytes()));
    for (int p = begin; p < std::min(chunk.context(), begin + kBlockTokens); ++p) {
      read_kv_row(kv.row_layout(), rows.data() + (p - begin) * kv.row_bytes(), key.data(), nullptr);
      for (int h = 0; h < group; ++h) {
        const float* query = queries.data() + static_cast<ptrdiff_t>(h) * dim;
        const float product = std::inner_product(key.begin(), key.end(), query, 0.0f);
        scores_[first_head + h][p] = reference::capped(product, hp_.product_cap(dim));
      }
    }
  }
}

void AttentionProbe::score_by_sketches(const Chunk& chunk, const Rows& q, KvLayer kv, int kv_head) {
  const SketchLayout layout{kv.head_dim, chunk.policy.sketch_bits};
  const std::vector<float> queries = this->queries(chunk, q, kv.head_dim, kv_head);
  for (int b = 0; b < chunk.context() / kBlockTokens; ++b) {
    const auto sketch = read_back(backend_, kv.sketch(layout.bits, chunk.blocks_of(kv)[b], kv_head), layout.bytes());
    for (int h = 0; h < hp_.group(); ++h) {
      float* const scores = scores_[kv_head * hp_.group() + h].data() + static_cast<ptrdiff_t>(b) * kBlockTokens;
      sketch_scores(layout, queries.data() + static_cast<ptrdiff_t>(h) * kv.head_dim, sketch.data(), scores);
      for (int p = 0; p < kBlockTokens; ++p) scores[p] = reference::capped(scores[p], hp_.product_cap(kv.head_dim));
    }
  }
}

std::vector<float> AttentionProbe::selected_mass(double scale) const {
  const size_t heads = scores_.size() / selected_.size();
  std::vector<float> mass;
  for (size_t head = 0; head < scores_.size(); ++head) {
    mass.push_back(softmax_share(scores_[head], scale, selected_[head / heads]));
  }
  return mass;
}

void AttentionProbe::attended(int layer, const Batch& batch, Rows q, KvLayer kv, const Selection& selection) {
  const auto sparse = std::find_if(batch.chunks.begin(), batch.chunks.end(), [](const Chunk& c) { return c.sparse(); });
  const Chunk& chunk = sparse == batch.chunks.end() ? batch.chunks[0] : *sparse;
  if (chunk.rows != 1) return;
  LayerAttention& attention = layers_[layer];
  attention.role = chunk.role(layer);
  attention.mass.assign(hp_.heads, 1.0f);
  attention.selected.clear();
  attention.agreement.clear();
  attention.scored_mass.clear();
  if (selects(attention.role)) {
    selected_ = read_back(backend_, hp_, chunk, selection);
    attention.selected = selected_;
  }
  if (!reads_selected(attention.role)) return;
  for (int h = 0; h < hp_.kv_heads; ++h) score(chunk, q, kv, h);
  const double scale = 1.0 / std::sqrt(static_cast<double>(kv.head_dim));
  attention.mass = selected_mass(scale);
  if (attention.role != Role::Scan) return;
  const size_t units = selected_.size(), heads = hp_.heads / units;
  const Policy policy = scan_policy(chunk.policy, chunk.context());
  const Reserved reserved = reserved_positions(policy);
  for (size_t unit = 0; unit < units; ++unit) {
    const std::span own(scores_.data() + unit * heads, heads);
    const std::vector<int32_t> exact = reference::select_positions(own, policy, scale);
    const std::span ranked = std::span(exact).subspan(reserved.sinks, exact.size() - reserved.sinks - reserved.recent);
    attention.agreement.push_back(share_of(ranked, selected_[unit]));
  }
  if (!scored_) return;
  for (int h = 0; h < hp_.kv_heads; ++h) score_by_sketches(chunk, q, kv, h);
  attention.scored_mass = selected_mass(scale);
}

}  // namespace tidal
