// Which of the plans that a search found is taken.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "eval/plan_search.h"

namespace tidal {

/// A plan that was found, with what it costs.
struct FoundPlan {
  SelectLayers select;
  double kl = 0;      ///< mean over the texts of the choice, nats
  int64_t bytes = 0;  ///< read per token
};

/// What the user asks for; nothing: the knee.
struct Wanted {
  std::optional<int> selects = {};       ///< the lowest KL with at most so many further Select layers
  std::optional<double> target_kl = {};  ///< the cheapest plan of at most this KL
};

/// Index into `plans`: the asked one, ties to the cheaper. The knee is the best plan of the smallest number of further
/// Select layers at which one more improves the KL by less than a tenth. Throws Error when there are none; for a target
/// that no plan meets it names the best one.
size_t choose_plan(std::span<const FoundPlan> plans, const Wanted& wanted);

/// Indices of the plan with the lowest KL for every number of further Select layers that there is, rising.
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
