#include "engine/draft_length.h"

#include <algorithm>
#include <cmath>

namespace tidal {
namespace {

constexpr double kMemory = 0.9;    // weight of a round's predecessor in a moving average
constexpr double kPriorTried = 4;  // what is believed before anything was verified
constexpr double kPriorTaken = 3;
constexpr double kWorthMore = 0.75;  // acceptance from which trials are longer
constexpr int kFirstPatience = 16;   // rounds
constexpr int kMostPatience = 256;

void average(double& mean, double value) { mean = mean == 0 ? value : kMemory * mean + (1 - kMemory) * value; }

}  // namespace

DraftLength::DraftLength(int most) : most_(most), verify_(static_cast<size_t>(most) + 2), patience_(kFirstPatience) {}

double DraftLength::acceptance() const { return (taken_ + kPriorTaken) / (tried_ + kPriorTried); }

double DraftLength::verify_seconds(int rows) const {
  // The measured neighbours; beyond the last one a row costs what it did on the way there, at least a fair share.
  int below = rows, above = rows;
  while (below > 0 && verify_[below] == 0) --below;
  while (above < static_cast<int>(verify_.size()) && verify_[above] == 0) ++above;
  const bool has_above = above < static_cast<int>(verify_.size());
  if (below == 0 && !has_above) return 0;
  if (below == 0) return verify_[above];
  if (below == rows) return verify_[rows];
  if (has_above) {
    const double share = static_cast<double>(rows - below) / (above - below);
    return verify_[below] + share * (verify_[above] - verify_[below]);
  }
  int before = below - 1;
  while (before > 0 && verify_[before] == 0) --before;
  const double slope = before > 0 ? (verify_[below] - verify_[before]) / (below - before) : verify_[below] / 2;
  return verify_[below] + std::max(slope, 0.0) * (rows - below);
}

double DraftLength::seconds_per_token(int drafts) const {
  const double a = acceptance();
  double tokens = 0;
  for (int i = 0; i <= drafts; ++i) tokens += std::pow(a, i);
  return (drafts * draft_ + verify_seconds(drafts + 1)) / tokens;
}

int DraftLength::best(int limit) const {
  int best = 0;
  for (int drafts = 1; drafts <= limit; ++drafts) {
    if (seconds_per_token(drafts) < seconds_per_token(best)) best = drafts;
  }
  return best;
}

int DraftLength::next(int limit) {
  limit = std::min(limit, most_);
  if (verify_[1] == 0) return 0;  // the yardstick first
  if (draft_ == 0) return std::min(1, limit);
  const int drafts = best(limit);
  if (drafts > 0 || rounds_without_ < patience_) return drafts;
  // One draft costs little to try; more show what a longer pass costs, which need not be in proportion.
  return std::min(acceptance() > kWorthMore ? 3 : 1, limit);
}

void DraftLength::record(int drafts, int accepted, double draft_seconds, double verify_seconds) {
  average(verify_[drafts + 1], verify_seconds);
  if (drafts == 0) {
    ++rounds_without_;
    return;
  }
  average(draft_, draft_seconds / drafts);
  // A rejected draft ends the round: those after it were not tried.
  tried_ = kMemory * tried_ + std::min(accepted + 1, drafts);
  taken_ = kMemory * taken_ + accepted;
  // Trials that keep failing become rare.
  if (rounds_without_ >= patience_) patience_ = std::min(2 * patience_, kMostPatience);
  if (best(most_) > 0) patience_ = kFirstPatience;
  rounds_without_ = 0;
}

}  // namespace tidal
