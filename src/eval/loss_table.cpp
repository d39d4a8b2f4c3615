#include "eval/loss_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace tidal {

void TextLoss::add(const TextLoss& other) {
  tokens += other.tokens;
  sum += other.sum;
  squares += other.squares;
}

double TextLoss::mean() const { return tokens > 0 ? sum / static_cast<double>(tokens) : 0; }

double TextLoss::error() const {
  if (tokens < 2) return 0;
  const auto n = static_cast<double>(tokens);
  return std::sqrt(std::max(0.0, squares / n - mean() * mean()) / (n - 1));
}

void LossTable::require(std::span<const Candidate> plans, int first, int end) {
  for (int text = first; text < end; ++text) {
    std::vector<Candidate> missing;
    std::set<Candidate> asked;
    for (const Candidate& plan : plans) {
      if (!known(plan, text) && asked.insert(plan).second) missing.push_back(plan);
    }
    if (missing.empty()) continue;
    const std::vector<TextLoss> losses = measure_(missing, text);
    for (size_t i = 0; i < missing.size(); ++i) add(missing[i], text, losses.at(i));
  }
}

TextLoss LossTable::over(const Candidate& plan, int first, int end) const {
  TextLoss loss;
  for (int text = first; text < end; ++text) loss.add(known_.at({plan, text}));
  return loss;
}

double rank(double loss) { return std::isfinite(loss) ? loss : std::numeric_limits<double>::infinity(); }

size_t cheapest_good(std::span<const double> losses) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const double loss : losses) lowest = std::fmin(lowest, loss);
  for (size_t i = 0; i < losses.size(); ++i) {
    if (losses[i] == lowest || lowest > (1 - kWorthwhile) * losses[i]) return i;
  }
  return 0;
}

}  // namespace tidal
