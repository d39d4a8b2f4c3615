#include "backend/reference/attention.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "backend/reference/math.h"

namespace tidal::reference {

Scores attend_head(const float* query, const Chunk& chunk, const KvLayer& kv, int kv_head,
                   std::span<const int32_t> positions, float cap, const float* sink_logit, float* out) {
  const int dim = kv.head_dim;
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  Scores scores(positions.size());
  float top = -std::numeric_limits<float>::infinity();
  std::vector<float> row(dim);
  for (size_t i = 0; i < positions.size(); ++i) {
    read_kv_row(kv.row_layout(), kv_row(chunk, kv, kv_head, positions[i]), row.data(), nullptr);
    double sum = 0;
    for (int d = 0; d < dim; ++d) sum += static_cast<double>(query[d]) * row[d];
    scores[i] = static_cast<float>(sum);
    top = std::fmax(top, capped(scores[i], cap));
  }
  double total = 0;
  std::vector<double> result(dim, 0.0);
  for (size_t i = 0; i < positions.size(); ++i) {
    read_kv_row(kv.row_layout(), kv_row(chunk, kv, kv_head, positions[i]), nullptr, row.data());
    const double weight = std::exp((static_cast<double>(capped(scores[i], cap)) - top) * scale);
    total += weight;
    for (int d = 0; d < dim; ++d) result[d] += weight * row[d];
  }
  if (sink_logit) total += std::exp(*sink_logit - top * scale);
  for (int d = 0; d < dim; ++d) out[d] = static_cast<float>(result[d] / total);
  return scores;
}

std::vector<Scores> scan_scores(const Chunk& chunk, int heads, Rows q, const KvLayer& kv) {
  const SketchLayout layout{kv.head_dim, chunk.policy.sketch_bits};
  const int filled = chunk.context() / kBlockTokens * kBlockTokens;
  std::vector<int32_t> filling(chunk.context() - filled);
  std::iota(filling.begin(), filling.end(), filled);
  std::vector<float> unused(kv.head_dim);
  std::vector<Scores> scores;
  for (int h = 0; h < heads; ++h) {
    const float* query = q.row(chunk.first_row) + int64_t{h} * kv.head_dim;
    const int kv_head = h * kv.kv_heads / heads;
    Scores own(filled);
    for (int p = 0; p < filled; p += kBlockTokens) {
      sketch_scores(layout, query, kv.sketch(layout.bits, chunk.blocks[p / kBlockTokens], kv_head), own.data() + p);
    }
    if (!filling.empty()) {
      const Scores exact = attend_head(query, chunk, kv, kv_head, filling, 0, nullptr, unused.data());
      own.insert(own.end(), exact.begin(), exact.end());
    }
    scores.push_back(std::move(own));
  }
  return scores;
}

}  // namespace tidal::reference
