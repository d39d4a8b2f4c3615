#include "eval/sketch_search.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace tidal {
namespace {

void check(const SketchSearchOptions& options) {
  if (options.dense.empty() || options.bits.empty()) {
    fail("calibrate: at least one number of Dense layers and one width of sketches are needed");
  }
  for (const int dense : options.dense) {
    if (dense < 0 || dense >= options.layers) {
      fail("calibrate: {} Dense layers of {} leave none to scan", dense, options.layers);
    }
  }
  if (options.sweep_texts < 1 || options.texts < options.sweep_texts) {
    fail("calibrate: a sweep over {} of {} texts, expected at least 1", options.sweep_texts, options.texts);
  }
}

class Search {
 public:
  Search(LossTable& table, const SketchSearchOptions& options) : table_(table), options_(options) {}

  SketchPlans run() {
    std::vector<Candidate> plans;
    for (const int dense : options_.dense) plans.push_back(Candidate::sketch(options_.first_bits, dense));
    found_.best = good(plans);
    plans.clear();
    for (const int bits : options_.bits) plans.push_back(Candidate::sketch(bits, found_.best.dense));
    found_.best = good(plans);
    sweep();
    measure(nested());
    return std::move(found_);
  }

 private:
  std::vector<double> measure(const std::vector<Candidate>& plans) {
    table_.require(plans, 0, options_.texts);
    std::vector<double> losses;
    for (const Candidate& plan : plans) {
      const TextLoss loss = table_.over(plan, 0, options_.texts);
      losses.push_back(loss.mean());
      const bool known = std::any_of(found_.plans.begin(), found_.plans.end(),
                                     [&](const RankedPlan& other) { return other.plan == plan; });
      if (!known) found_.plans.push_back({plan, loss});
    }
    return losses;
  }

  Candidate good(const std::vector<Candidate>& plans) { return plans[cheapest_good(measure(plans))]; }

  void sweep() {
    const Candidate& best = found_.best;
    std::vector<Candidate> plans;
    for (int l = best.dense + 1; l < options_.layers; ++l) {
      plans.push_back(Candidate::sketch(best.bits, best.dense, {l}));
    }
    table_.require(plans, 0, options_.sweep_texts);
    for (const Candidate& plan : plans) found_.sweep.push_back({plan, table_.over(plan, 0, options_.sweep_texts)});
    found_.best_loss = table_.over(best, 0, options_.sweep_texts);
  }

  /// Sets of the layers that lost least alone.
  std::vector<Candidate> nested() const {
    std::vector<std::pair<double, int>> order;
    for (const RankedPlan& single : found_.sweep) {
      if (std::isfinite(single.loss.mean())) order.emplace_back(single.loss.mean(), single.plan.sparse.front());
    }
    std::sort(order.begin(), order.end());
    std::vector<Candidate> plans;
    for (size_t count = 1; count <= order.size(); count *= 2) {
      std::vector<int> sparse;
      for (size_t i = 0; i < count; ++i) sparse.push_back(order[i].second);
      std::sort(sparse.begin(), sparse.end());
      plans.push_back(Candidate::sketch(found_.best.bits, found_.best.dense, std::move(sparse)));
    }
    return plans;
  }

  LossTable& table_;
  const SketchSearchOptions& options_;
  SketchPlans found_;
};

}  // namespace

SketchPlans search_sketch_plans(LossTable& table, const SketchSearchOptions& options) {
  check(options);
  return Search(table, options).run();
}

}  // namespace tidal
