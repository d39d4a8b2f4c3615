#include "backend/reference/completion.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference/attention.h"

namespace tidal::reference {
namespace {

/// What stands for the value of a position.
enum class Value : uint8_t { Mean, Estimate, Own };

double key_score(const CompletedRow& row, int head, int position) {
  const KvLayer& kv = row.kv;
  std::vector<float> key(static_cast<size_t>(kv.head_dim));
  read_kv_row(kv.row_layout(), kv_row(row.chunk, kv, row.kv_head, position), key.data(), nullptr);
  const float* const q = row.q + static_cast<ptrdiff_t>(head) * kv.head_dim;
  double sum = 0;
  for (int d = 0; d < kv.head_dim; ++d) sum += static_cast<double>(q[d]) * key[d];
  return sum;
}

std::vector<float> value_of(const CompletedRow& row, int position, Value kind) {
  const KvLayer& kv = row.kv;
  const BlockId block = row.chunk.blocks[position / kBlockTokens];
  const int offset = position % kBlockTokens;
  std::vector<float> value(static_cast<size_t>(kv.head_dim));
  if (kind == Value::Own) {
    read_kv_row(kv.row_layout(), kv_row(row.chunk, kv, row.kv_head, position), nullptr, value.data());
    return value;
  }
  const ValueSketchLayout layout{kv.head_dim};
  const std::byte* const sketch = kv.value_sketch(block, row.kv_head);
  if (kind == Value::Estimate) {
    value_sketch_row(layout, sketch, offset, value.data());
  } else {
    value_sketch_mean(layout, sketch, value.data());
  }
  return value;
}

/// The selection among `ranked`, as if there were no other positions.
std::vector<int32_t> select_among(const std::vector<int32_t>& ranked, const std::vector<Scores>& scores,
                                  const Policy& policy, double scale) {
  std::vector<Scores> own;
  for (const Scores& head : scores) {
    Scores& of_ranked = own.emplace_back();
    for (const int32_t position : ranked) of_ranked.push_back(head[position]);
  }
  std::vector<int32_t> selected = select_positions(own, policy, scale);
  for (int32_t& position : selected) position = ranked[position];
  return selected;
}

void attend(const CompletedRow& row, int head, const Scores& scores, const std::vector<Value>& values, double scale,
            float* out) {
  float top = -std::numeric_limits<float>::infinity();
  for (const float score : scores) top = std::fmax(top, score);
  double total = row.sink_logits ? std::exp(row.sink_logits[head] - top * scale) : 0;
  std::vector<double> result(static_cast<size_t>(row.kv.head_dim), 0.0);
  for (size_t p = 0; p < scores.size(); ++p) {
    double weight = std::exp((static_cast<double>(scores[p]) - top) * scale);
    if (values[p] == Value::Mean) weight *= kShareOfMeans;
    total += weight;
    const std::vector<float> value = value_of(row, static_cast<int>(p), values[p]);
    for (size_t d = 0; d < result.size(); ++d) result[d] += weight * value[d];
  }
  for (size_t d = 0; d < result.size(); ++d) out[d] = static_cast<float>(result[d] / total);
}

}  // namespace

std::vector<int32_t> complete(const CompletedRow& row, std::vector<Scores> scores, float* out) {
  const Policy& policy = row.chunk.policy;
  const int context = row.chunk.context();
  const double scale = 1.0 / std::sqrt(static_cast<double>(row.kv.head_dim));
  const auto tier = [&](int budgets) { return select_positions(scores, tier_policy(policy, context, budgets), scale); };
  const std::vector<int32_t> estimated = tier(policy.completion.estimated);
  const std::vector<int32_t> ranked = tier(policy.completion.ranked);
  for (size_t h = 0; h < scores.size(); ++h) {
    for (const int32_t p : ranked) scores[h][p] = static_cast<float>(key_score(row, static_cast<int>(h), p));
  }
  std::vector<int32_t> selected = select_among(ranked, scores, scan_policy(policy, context), scale);

  std::vector<Value> values(static_cast<size_t>(context), Value::Mean);
  for (const int32_t p : estimated) values[p] = Value::Estimate;
  for (const int32_t p : selected) values[p] = Value::Own;
  for (size_t h = 0; h < scores.size(); ++h) {
    attend(row, static_cast<int>(h), scores[h], values, scale, out + h * static_cast<size_t>(row.kv.head_dim));
  }
  return selected;
}

}  // namespace tidal::reference
