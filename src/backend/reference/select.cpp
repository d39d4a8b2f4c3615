#include "backend/reference/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tidal::reference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Scores pool_max(std::span<const Scores> heads) {
  Scores pooled = heads[0];
  for (const Scores& head : heads) {
    for (size_t i = 0; i < pooled.size(); ++i) pooled[i] = std::fmax(pooled[i], head[i]);  // fmax ignores a NaN
  }
  return pooled;
}

/// Softmax probabilities of one head; all 0 when no score is above -infinity.
std::vector<double> probabilities(const Scores& scores, double scale) {
  float top = -kInfinity;
  for (const float score : scores) top = std::fmax(top, score);
  std::vector<double> result(scores.size(), 0.0);
  if (top == -kInfinity) return result;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) continue;
    // The difference of infinities is no number, hence the equality first.
    result[i] = scores[i] == top ? 1.0 : std::exp((static_cast<double>(scores[i]) - top) * scale);
  }
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& value : result) value /= sum;
  return result;
}

}  // namespace

std::vector<float> masses(std::span<const Scores> heads, double scale) {
  std::vector<double> sums(heads[0].size(), 0.0);
  for (const Scores& head : heads) {
    const std::vector<double> shares = probabilities(head, scale);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += shares[i];
  }
  return {sums.begin(), sums.end()};
}

std::vector<float> pooled_scores(std::span<const Scores> heads, const Policy& policy, double scale) {
  if (heads.size() == 1) return heads[0];
  return policy.pooling == Pooling::Max ? pool_max(heads) : masses(heads, scale);
}

std::vector<int32_t> select_positions(std::span<const Scores> heads, const Policy& policy, double scale) {
  const std::vector<float> pooled = pooled_scores(heads, policy, scale);
  const int context = static_cast<int>(pooled.size());
  const Reserved reserved = reserved_positions(policy);
  std::vector<int32_t> all(context);
  std::iota(all.begin(), all.end(), 0);
  std::vector<int32_t> chosen(all.begin(), all.begin() + reserved.sinks);
  chosen.insert(chosen.end(), all.end() - reserved.recent, all.end());

  std::vector<int32_t> others(all.begin() + reserved.sinks, all.end() - reserved.recent);
  const auto ahead = [&](int32_t a, int32_t b) {
    const bool a_is_nan = std::isnan(pooled[a]), b_is_nan = std::isnan(pooled[b]);
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && pooled[a] != pooled[b]) return pooled[a] > pooled[b];
    return a < b;
  };
  std::sort(others.begin(), others.end(), ahead);

  const std::vector<float> mass = masses(heads, scale);
  const double wanted = policy.top_p * std::accumulate(mass.begin(), mass.end(), 0.0);
  double held = 0;
  for (const int32_t position : chosen) held += mass[position];
  for (size_t i = 0; static_cast<int>(chosen.size()) < policy.budget; ++i) {
    if (policy.top_p < 1 && held >= wanted) break;
    chosen.push_back(others[i]);
    held += mass[others[i]];
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace tidal::reference
