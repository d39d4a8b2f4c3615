// The search among plans that scan, on invented losses whose best plan is known.
#include "eval/sketch_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <set>

#include "support/error.h"

namespace tidal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Invented {
  std::function<double(const Candidate&, int text)> formula;
  std::vector<std::pair<Candidate, int>> asked = {};

  LossTable table() {
    return LossTable([this](std::span<const Candidate> plans, int text) {
      std::vector<TextLoss> losses(plans.size());
      for (size_t i = 0; i < plans.size(); ++i) {
        asked.emplace_back(plans[i], text);
        for (int token = 0; token < 4; ++token) losses[i].add(formula(plans[i], text));
      }
      return losses;
    });
  }
};

/// Dense layers bring nothing beyond the first, more than 2 bits little; layer l that reuses loses cost[l].
double loss(const Candidate& plan, const std::vector<double>& cost) {
  double sum = plan.bits == 1 ? 0.08 : plan.bits == 2 ? 0.05 : 0.049;
  if (plan.dense == 0) sum += 0.02;
  for (const int l : plan.sparse) sum += cost[static_cast<size_t>(l)];
  return sum;
}

const std::vector<double> kCost = {9, 9, .030, .001, .040, .002, .003, .050, .060, .004};

SketchSearchOptions options() {
  SketchSearchOptions options;
  options.layers = 10;
  options.texts = 5;
  options.sweep_texts = 2;
  return options;
}

std::vector<Candidate> plans_of(const SketchPlans& found) {
  std::vector<Candidate> plans;
  for (const RankedPlan& ranked : found.plans) plans.push_back(ranked.plan);
  return plans;
}

TEST(SketchSearch, FindsDenseLayersWidthAndTheLayersThatReuse) {
  // What is common to a text cancels.
  Invented invented{[](const Candidate& plan, int text) { return loss(plan, kCost) + 1e-4 * text; }};
  LossTable table = invented.table();
  const SketchPlans found = search_sketch_plans(table, options());
  EXPECT_EQ(found.best, Candidate::sketch(2, 1));
  EXPECT_THAT(
      plans_of(found),
      ElementsAre(Candidate::sketch(2, 0), Candidate::sketch(2, 1), Candidate::sketch(2, 2), Candidate::sketch(1, 1),
                  Candidate::sketch(4, 1), Candidate::sketch(2, 1, {3}), Candidate::sketch(2, 1, {3, 5}),
                  Candidate::sketch(2, 1, {3, 5, 6, 9}), Candidate::sketch(2, 1, {2, 3, 4, 5, 6, 7, 8, 9})));
  for (const RankedPlan& ranked : found.plans) {
    EXPECT_EQ(ranked.loss.tokens, 5 * 4);
    EXPECT_NEAR(ranked.loss.mean(), loss(ranked.plan, kCost) + 2e-4, 1e-12);
  }
  // Every layer behind the first one that scans, over two texts; and what they are compared with.
  ASSERT_EQ(found.sweep.size(), 8u);
  for (size_t i = 0; i < found.sweep.size(); ++i) {
    const int layer = static_cast<int>(i) + 2;
    EXPECT_THAT(found.sweep[i].plan.sparse, ElementsAre(layer));
    EXPECT_EQ(found.sweep[i].loss.tokens, 2 * 4);
    EXPECT_NEAR(found.sweep[i].loss.mean() - found.best_loss.mean(), kCost[static_cast<size_t>(layer)], 1e-12);
  }
  // Nothing twice, and no more than that: 9 plans on all texts, 8 in the sweep of which one goes on.
  EXPECT_EQ(std::set(invented.asked.begin(), invented.asked.end()).size(), invented.asked.size());
  EXPECT_EQ(invented.asked.size(), 9u * 5 + 7 * 2);
}

TEST(SketchSearch, MoreDenseLayersOrBitsMustImproveByATenth) {
  const auto best = [](double two_dense, double one_bit, double four_bits) {
    Invented invented{[=](const Candidate& plan, int) {
      return plan.dense == 2 ? two_dense : plan.bits == 1 ? one_bit : plan.bits == 4 ? four_bits : 1.0;
    }};
    LossTable table = invented.table();
    return search_sketch_plans(table, options()).best;
  };
  EXPECT_EQ(best(0.95, 2, 0.95), Candidate::sketch(2, 0));
  EXPECT_EQ(best(0.95, 1.05, 0.97), Candidate::sketch(1, 0));
  EXPECT_EQ(best(0.95, 2, 0.8), Candidate::sketch(4, 0));
  EXPECT_EQ(best(0.8, 2, 2).dense, 2);
  EXPECT_EQ(best(kNaN, kNaN, kNaN), Candidate::sketch(2, 0));
}

TEST(SketchSearch, TiesGoToLowerLayersAndNaNDoesNotReuse) {
  Invented same{[](const Candidate&, int) { return 1.0; }};
  LossTable table = same.table();
  const SketchPlans found = search_sketch_plans(table, options());
  EXPECT_EQ(found.best, Candidate::sketch(1, 0));
  EXPECT_THAT(found.plans.back().plan.sparse, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));

  Invented broken{[](const Candidate& plan, int) { return plan.sparse.empty() || plan.sparse[0] == 7 ? 1.0 : kNaN; }};
  LossTable other = broken.table();
  EXPECT_EQ(search_sketch_plans(other, options()).plans.back().plan, Candidate::sketch(1, 0, {7}));
}

TEST(SketchSearch, ModelsOfFewLayers) {
  Invented same{[](const Candidate&, int) { return 1.0; }};
  LossTable table = same.table();
  SketchSearchOptions shallow = options();
  shallow.layers = 1;
  shallow.dense = {0};
  const SketchPlans found = search_sketch_plans(table, shallow);
  EXPECT_TRUE(found.sweep.empty());
  EXPECT_EQ(found.plans.size(), 3u);
}

TEST(SketchSearch, RefusesWhatLeavesNothingToTry) {
  LossTable table([](std::span<const Candidate> plans, int) { return std::vector<TextLoss>(plans.size()); });
  const auto error = [&](const std::function<void(SketchSearchOptions&)>& change) {
    SketchSearchOptions search = options();
    change(search);
    return test::error_of([&] { search_sketch_plans(table, search); });
  };
  EXPECT_THAT(error([](SketchSearchOptions& o) { o.dense = {}; }), HasSubstr("at least one number"));
  EXPECT_THAT(error([](SketchSearchOptions& o) { o.bits = {}; }), HasSubstr("at least one number"));
  EXPECT_THAT(error([](SketchSearchOptions& o) { o.dense = {10}; }), HasSubstr("10 Dense layers of 10"));
  EXPECT_THAT(error([](SketchSearchOptions& o) { o.sweep_texts = 0; }), HasSubstr("a sweep over 0 of 5"));
  EXPECT_THAT(error([](SketchSearchOptions& o) { o.texts = 1; }), HasSubstr("a sweep over 2 of 1"));
}

}  // namespace
}  // namespace tidal
