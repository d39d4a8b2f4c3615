#include "engine/draft_length.h"

#include <algorithm>
#include <cmath>

namespace tidal {
namespace {

constexpr double kMemory = 0.9;  // weight of a round's predecessor in a moving average
// Acceptance that is believed before anything was verified, and how many drafts that belief is worth.
constexpr double kBelief[kDraftSources] = {0.75, 0.4, 0.75};
constexpr double kBelieved = 4;
constexpr double kWorthMore = 0.75;  // acceptance from which trials are longer
constexpr double kMargin = 0.95;
constexpr int kFirstPatience = 16;  // rounds
constexpr int kMostPatience = 256;

void average(double& mean, double value) { mean = mean == 0 ? value : kMemory * mean + (1 - kMemory) * value; }

}  // namespace

DraftLength::DraftLength(int most) : most_(most), verify_(static_cast<size_t>(most) + 2), patience_(kFirstPatience) {
  for (int i = 0; i < kDraftSources; ++i) trials_[i] = {kBelieved, kBelieved * kBelief[i]};
}

double DraftLength::acceptance(DraftSource source) const {
  const int index = static_cast<int>(source);
  return trials_[index].accepted / trials_[index].tried;
}

double DraftLength::verify_seconds(int rows) const {
  // The measured neighbours; beyond the last one a row costs what it did on the way there.
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
  // From one measurement alone: about half of a step is the same for all its rows.
  const double slope = before > 0 ? (verify_[below] - verify_[before]) / (below - before) : verify_[below] / 2;
  return verify_[below] + std::max(slope, 0.0) * (rows - below);
}

double DraftLength::seconds_per_token(const Round& round) const {
  const double a = acceptance(round.source);
  double tokens = 0;
  for (int i = 0; i <= round.drafts; ++i) tokens += std::pow(a, i);
  const double draft = round.source == DraftSource::Sparse ? round.drafts * draft_ : 0;
  return (draft + verify_seconds(round.drafts + 1)) / tokens;
}

DraftLength::Round DraftLength::best(int sparse, int copied, DraftSource match) const {
  Round best;
  const auto consider = [&](DraftSource source, int limit) {
    for (int drafts = 1; drafts <= limit; ++drafts) {
      const Round round{source, drafts};
      // Against no drafts at all they must win clearly: of many noisy estimates the best one flatters itself.
      const double margin = best.drafts == 0 ? kMargin : 1;
      if (seconds_per_token(round) < margin * seconds_per_token(best)) best = round;
    }
  };
  consider(match, copied);
  if (draft_ > 0) consider(DraftSource::Sparse, sparse);
  return best;
}

DraftLength::Round DraftLength::next(int sparse, int copied, DraftSource match) {
  sparse = std::min(sparse, most_);
  copied = std::min(copied, most_);
  if (verify_[1] == 0) return {};  // the yardstick first
  if (draft_ == 0 && sparse > 0) return {DraftSource::Sparse, 1};
  const Round round = best(sparse, copied, match);
  if (round.drafts > 0 || rounds_without_ < patience_) return round;
  // One draft costs little to try; more show what a longer pass costs, which need not be in proportion.
  return {DraftSource::Sparse, std::min(acceptance(DraftSource::Sparse) > kWorthMore ? 3 : 1, sparse)};
}

void DraftLength::record(const Round& round, int accepted, double draft_seconds, double verify_seconds) {
  average(verify_[round.drafts + 1], verify_seconds);
  if (round.drafts > 0) {
    Trials& trials = trials_[static_cast<int>(round.source)];
    // A rejected draft ends the round: those after it were not tried.
    trials.tried = kMemory * trials.tried + std::min(accepted + 1, round.drafts);
    trials.accepted = kMemory * trials.accepted + accepted;
  }
  if (round.drafts == 0 || round.source != DraftSource::Sparse) {
    ++rounds_without_;
    return;
  }
  average(draft_, draft_seconds / round.drafts);
  // Trials that keep failing become rare.
  if (rounds_without_ >= patience_) patience_ = std::min(2 * patience_, kMostPatience);
  if (best(most_, 0, DraftSource::ShortMatch).drafts > 0) patience_ = kFirstPatience;
  rounds_without_ = 0;
}

}  // namespace tidal
