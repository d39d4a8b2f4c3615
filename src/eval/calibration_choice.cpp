#include "eval/calibration_choice.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/error.h"

namespace tidal {
namespace {

int further(const FoundPlan& plan) { return static_cast<int>(plan.plan.select.size()) - 1; }

bool lower_kl(const FoundPlan& a, const FoundPlan& b) {
  const auto key = [](const FoundPlan& plan) { return std::tuple(std::isnan(plan.kl), plan.kl, plan.bytes); };
  if (std::isnan(a.kl) || std::isnan(b.kl)) return !std::isnan(a.kl);
  return key(a) < key(b);
}

size_t cheapest(std::span<const FoundPlan> plans, double target) {
  std::optional<size_t> found;
  size_t best = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (lower_kl(plans[i], plans[best])) best = i;
    if (!(plans[i].kl <= target)) continue;
    if (!found || std::tie(plans[i].bytes, plans[i].kl) < std::tie(plans[*found].bytes, plans[*found].kl)) found = i;
  }
  if (!found) {
    fail("--target-kl: no plan has a KL of at most {:g}; the best one found, {}, has {:.4g}", target,
         format_candidate(plans[best].plan), plans[best].kl);
  }
  return *found;
}

size_t best_tidal(std::span<const FoundPlan> plans, const std::vector<size_t>& best, std::optional<int> selects) {
  size_t chosen = best.front();
  for (const size_t index : best) {
    if (selects) {
      if (further(plans[index]) <= *selects && lower_kl(plans[index], plans[chosen])) chosen = index;
    } else if (index != chosen) {
      if (!(plans[index].kl <= (1 - kWorthwhile) * plans[chosen].kl)) break;
      chosen = index;
    }
  }
  return chosen;
}

/// Of these plans the cheapest that none of them improves on by a tenth.
size_t good_for_its_cost(std::span<const FoundPlan> plans, std::vector<size_t> indices) {
  std::sort(indices.begin(), indices.end(), [&](size_t a, size_t b) {
    return std::tuple(plans[a].bytes, rank(plans[a].kl), a) < std::tuple(plans[b].bytes, rank(plans[b].kl), b);
  });
  std::vector<double> losses;
  for (const size_t i : indices) losses.push_back(plans[i].kl);
  return indices[cheapest_good(losses)];
}

}  // namespace

std::vector<size_t> best_by_selects(std::span<const FoundPlan> plans) {
  std::map<int, size_t> best;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i].plan.kind != PlanKind::Tidal) continue;
    const auto [entry, fresh] = best.try_emplace(further(plans[i]), i);
    if (!fresh && lower_kl(plans[i], plans[entry->second])) entry->second = i;
  }
  std::vector<size_t> indices;
  for (const auto& [selects, index] : best) indices.push_back(index);
  return indices;
}

size_t choose_plan(std::span<const FoundPlan> plans, const Wanted& wanted) {
  if (plans.empty()) fail("calibrate: there is no plan to choose from");
  if (wanted.target_kl) return cheapest(plans, *wanted.target_kl);
  std::vector<size_t> contenders, sketches;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i].plan.kind == PlanKind::Sketch) sketches.push_back(i);
  }
  const std::vector<size_t> tidal = best_by_selects(plans);
  if (!tidal.empty()) contenders.push_back(best_tidal(plans, tidal, wanted.selects));
  if (!sketches.empty()) contenders.push_back(good_for_its_cost(plans, std::move(sketches)));
  return good_for_its_cost(plans, std::move(contenders));
}

StepTime::StepTime(int64_t bytes, double seconds, int64_t other_bytes, double other_seconds) {
  const auto apart = static_cast<double>(bytes - other_bytes);
  per_byte_ = apart == 0 ? 0 : (seconds - other_seconds) / apart;
  fixed_ = seconds - per_byte_ * static_cast<double>(bytes);
  if (per_byte_ > 0 && fixed_ >= 0) return;
  fixed_ = 0;
  per_byte_ = seconds / static_cast<double>(bytes);
}

}  // namespace tidal
