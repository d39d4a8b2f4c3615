// Which of the plans that a search found is taken.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "eval/loss_table.h"

namespace tidal {

/// A plan that was found, with what it costs.
struct FoundPlan {
  Candidate plan;
  double kl = 0;      ///< mean over the texts of the choice, nats
  int64_t bytes = 0;  ///< read per token
};

/// What the user asks for; nothing: the best plans for what they cost, as choose_plan() has it.
struct Wanted {
  std::optional<int> selects = {};       ///< tidal plans: the lowest KL with at most so many further Select layers
  std::optional<double> target_kl = {};  ///< the cheapest plan of at most this KL, of all kinds
};

/// Index into `plans`: the asked one, ties to the cheaper. Without a target every kind puts up one plan, and a tenth of
/// the KL (kWorthwhile) is what a plan that reads more must bring:
/// - tidal: the best plan of the smallest number of further Select layers at which one more improves the KL by less, or
///   what `selects` asks for;
/// - sketch: the cheapest plan that no other sketch plan improves on by that much.
/// Of the two the cheaper one is taken, unless the other improves on it by that much. Throws Error when there are none;
/// for a target that no plan meets it names the best one.
size_t choose_plan(std::span<const FoundPlan> plans, const Wanted& wanted);

/// Indices of the tidal plan with the lowest KL for every number of further Select layers that there is, rising.
std::vector<size_t> best_by_selects(std::span<const FoundPlan> plans);

/// Seconds of a decode step as a line over the bytes that it reads, through two measured plans. Where the two do not
/// make a rising line, proportional to the bytes of the first.
class StepTime {
 public:
  StepTime(int64_t bytes, double seconds, int64_t other_bytes, double other_seconds);
  double seconds(int64_t bytes) const { return fixed_ + per_byte_ * static_cast<double>(bytes); }

 private:
  double fixed_ = 0, per_byte_ = 0;
};

}  // namespace tidal
