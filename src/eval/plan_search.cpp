#include "eval/plan_search.h"

#include <algorithm>
#include <set>

#include "core/error.h"

namespace tidal {
namespace {

bool better(const RankedPlan& a, const RankedPlan& b) {
  const double x = rank(a.loss.mean()), y = rank(b.loss.mean());
  if (x != y) return x < y;
  if (a.plan.select.size() != b.plan.select.size()) return a.plan.select.size() < b.plan.select.size();
  return a.plan.select < b.plan.select;
}

std::vector<RankedPlan> ranked(LossTable& table, std::span<const SelectLayers> plans, int texts) {
  std::vector<Candidate> candidates;
  for (const SelectLayers& select : plans) candidates.push_back(Candidate::tidal(select));
  table.require(candidates, 0, texts);
  std::vector<RankedPlan> result;
  for (const Candidate& plan : candidates) result.push_back({plan, table.over(plan, 0, texts)});
  std::sort(result.begin(), result.end(), better);
  return result;
}

/// The best `count`, and the best of every first Select layer.
std::vector<SelectLayers> survivors(const std::vector<RankedPlan>& plans, size_t count) {
  std::vector<SelectLayers> kept;
  std::set<int> firsts;
  for (size_t i = 0; i < plans.size(); ++i) {
    const bool leads = firsts.insert(plans[i].plan.select.front()).second;
    if (i < count || leads) kept.push_back(plans[i].plan.select);
  }
  return kept;
}

/// Plans by their number of further layers, measured on all texts.
class Search {
 public:
  Search(LossTable& table, const SearchOptions& options)
      : table_(table), options_(options), best_(static_cast<size_t>(options.selects)) {}

  std::vector<std::vector<RankedPlan>> run() {
    for (size_t n = 0; n < best_.size(); ++n) {
      try_plans(n == 0 ? pairs() : grown(n), static_cast<size_t>(options_.finalists));
      if (best_[n].empty()) break;
      // All pairs have been tried: they have no better neighbours.
      if (n > 0) refine(n);
      if (options_.enough && options_.enough(best_[n].front())) break;
    }
    return std::move(best_);
  }

 private:
  std::vector<SelectLayers> pairs() const {
    std::vector<SelectLayers> plans;
    for (const int first : options_.first_select) {
      for (int l = first + 1; l < options_.layers; ++l) plans.push_back({first, l});
    }
    return plans;
  }

  std::vector<SelectLayers> grown(size_t n) const {
    const std::vector<RankedPlan>& smaller = best_[n - 1];
    std::vector<SelectLayers> plans;
    for (size_t i = 0; i < std::min(smaller.size(), static_cast<size_t>(options_.beam)); ++i) {
      const SelectLayers& select = smaller[i].plan.select;
      for (int l = select.front() + 1; l < options_.layers; ++l) {
        if (std::binary_search(select.begin(), select.end(), l)) continue;
        SelectLayers more = select;
        more.insert(std::upper_bound(more.begin(), more.end(), l), l);
        plans.push_back(std::move(more));
      }
    }
    return plans;
  }

  void refine(size_t n) {
    for (int round = 0; round < options_.refinements; ++round) {
      const SelectLayers before = best_[n].front().plan.select;
      try_plans(neighbours(before, options_), static_cast<size_t>(std::max(1, options_.finalists / 2)));
      if (best_[n].front().plan.select == before) break;
    }
  }

  /// Halves those that were not tried before and sorts the finalists in.
  void try_plans(const std::vector<SelectLayers>& plans, size_t finalists) {
    std::vector<SelectLayers> fresh;
    for (const SelectLayers& select : plans) {
      if (tried_.insert(select).second) fresh.push_back(select);
    }
    for (RankedPlan& plan : halve(table_, std::move(fresh), options_.rungs, finalists)) {
      std::vector<RankedPlan>& same = best_[plan.plan.select.size() - 2];
      same.insert(std::upper_bound(same.begin(), same.end(), plan, better), std::move(plan));
    }
  }

  LossTable& table_;
  const SearchOptions& options_;
  std::vector<std::vector<RankedPlan>> best_;
  std::set<SelectLayers> tried_;
};

}  // namespace

std::vector<RankedPlan> halve(LossTable& table, std::vector<SelectLayers> plans, std::span<const int> rungs,
                              size_t finalists) {
  std::vector<RankedPlan> result;
  for (size_t r = 0; r < rungs.size() && !plans.empty(); ++r) {
    result = ranked(table, plans, rungs[r]);
    if (r + 1 == rungs.size()) break;
    const bool next_is_last = r + 2 == rungs.size();
    plans = survivors(result, next_is_last ? finalists : std::max(finalists, (plans.size() + 2) / 3));
  }
  return result;
}

std::vector<SelectLayers> neighbours(const SelectLayers& select, const SearchOptions& options) {
  std::set<SelectLayers> found;
  const auto add = [&](SelectLayers changed) {
    std::sort(changed.begin(), changed.end());
    const bool twice = std::adjacent_find(changed.begin(), changed.end()) != changed.end();
    const auto& firsts = options.first_select;
    const bool first = std::find(firsts.begin(), firsts.end(), changed.front()) != firsts.end();
    if (!twice && first && changed.back() < options.layers && changed != select) found.insert(std::move(changed));
  };
  for (size_t i = 0; i < select.size(); ++i) {
    const int most = i == 0 ? 1 : 2;
    for (int by = -most; by <= most; ++by) {
      SelectLayers moved = select;
      moved[i] += by;
      // A further layer never becomes the first one: that is another plan altogether.
      if (i == 0 || moved[i] > select.front()) add(std::move(moved));
    }
    if (i > 0 && select.size() > 2) {
      SelectLayers fewer = select;
      fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(i));
      add(std::move(fewer));
    }
  }
  return {found.begin(), found.end()};
}

std::vector<std::vector<RankedPlan>> search_plans(LossTable& table, const SearchOptions& options) {
  const auto& firsts = options.first_select;
  const bool outside = std::any_of(firsts.begin(), firsts.end(), [&](int l) { return l < 0 || l >= options.layers; });
  if (firsts.empty() || outside)
    fail("calibrate: the first Select layer must be one of the model's {}", options.layers);
  if (options.selects < 1) fail("calibrate: {} further Select layers, at least 1 is needed", options.selects);
  if (options.rungs.empty() || options.rungs.front() < 1 ||
      !std::is_sorted(options.rungs.begin(), options.rungs.end())) {
    fail("calibrate: the texts of each rung must be a rising list of numbers from 1 on");
  }
  if (options.finalists < 1 || options.beam < 1) fail("calibrate: at least one finalist and one set are needed");
  auto plans = Search(table, options).run();
  if (plans.front().empty()) fail("calibrate: a model of {} layers is too shallow", options.layers);
  return plans;
}

}  // namespace tidal
