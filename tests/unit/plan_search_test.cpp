// The search for Select layers, on invented losses whose best plan is known.
#include "eval/plan_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "support/error.h"
#include "support/random.h"

namespace tidal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// Losses of plans by a formula, with noise that all plans share at a text and noise of their own, both the same every
/// time. Counts what is asked.
class Invented {
 public:
  using Formula = std::function<double(const SelectLayers&)>;
  explicit Invented(Formula formula, double noise = 0) : formula_(std::move(formula)), noise_(noise) {}

  LossTable table() {
    return LossTable([this](std::span<const Candidate> plans, int text) {
      std::vector<TextLoss> losses;
      for (const auto& [kind, select, bits, dense, sparse] : plans) {
        EXPECT_EQ(kind, PlanKind::Tidal);
        EXPECT_EQ(asked_[text].insert(select).second, true) << format_select(select) << " twice on text " << text;
        uint64_t stream = static_cast<uint64_t>(text) + 1;
        for (const int l : select) stream = stream * 131 + static_cast<uint64_t>(l);
        test::Random common(static_cast<uint64_t>(text) + 9000), own(stream);
        TextLoss loss;
        const double text_level = common.normal(0.5f);
        for (int i = 0; i < 32; ++i) {
          loss.add(formula_(select) + text_level + noise_ * static_cast<double>(own.normal(1.0f)));
        }
        losses.push_back(loss);
      }
      return losses;
    });
  }
  size_t asked(int text) const { return asked_.at(text).size(); }
  bool was_asked(const SelectLayers& select, int text) const { return asked_.at(text).contains(select); }

 private:
  Formula formula_;
  double noise_;
  std::map<int, std::set<SelectLayers>> asked_;
};

/// Every layer reads what the last Select layer before it chose, and loses by how far its needs have drifted since.
double drift_loss(const SelectLayers& select, const std::vector<double>& needs) {
  double loss = 0;
  size_t last = 0;
  for (size_t l = static_cast<size_t>(select.front()); l < needs.size(); ++l) {
    while (last + 1 < select.size() && select[last + 1] <= static_cast<int>(l)) ++last;
    loss += std::abs(needs[l] - needs[static_cast<size_t>(select[last])]) / static_cast<double>(needs.size());
  }
  return loss;
}

std::vector<double> needs_of(int layers, uint64_t stream) {
  test::Random random(stream);
  std::vector<double> needs;
  double need = 0;
  for (int l = 0; l < layers; ++l) needs.push_back(need += random.normal(1.0f));
  return needs;
}

/// The best plan with `further` layers by trying them all.
SelectLayers best_of_all(const Invented::Formula& formula, int layers, size_t further) {
  SelectLayers best;
  double least = std::numeric_limits<double>::infinity();
  const std::function<void(SelectLayers)> grow = [&](SelectLayers select) {
    if (select.size() == further + 1) {
      const double loss = formula(select);
      if (loss < least) {
        least = loss;
        best = std::move(select);
      }
      return;
    }
    for (int l = select.back() + 1; l < layers; ++l) {
      SelectLayers more = select;
      more.push_back(l);
      grow(std::move(more));
    }
  };
  for (const int first : {1, 2, 3}) grow({first});
  return best;
}

SearchOptions options(int layers, int selects) {
  SearchOptions options;
  options.layers = layers;
  options.selects = selects;
  options.rungs = {2, 5, 12};
  return options;
}

TEST(PlanSearch, OneReselectLayerIsTheBestOfAll) {
  for (const uint64_t stream : {1, 2, 3, 4, 5}) {
    const auto needs = needs_of(24, stream);
    const auto formula = [&](const SelectLayers& select) { return drift_loss(select, needs); };
    Invented invented(formula);
    LossTable table = invented.table();
    const auto found = search_plans(table, options(24, 1));
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0][0].plan.select, best_of_all(formula, 24, 1));
    // Every pair on the first texts, few on the last.
    EXPECT_EQ(invented.asked(0), 22u + 21 + 20);
    EXPECT_LE(invented.asked(11), 8u + 2);
  }
}

TEST(PlanSearch, NoiseDoesNotChoose) {
  // Own noise of a token as large as the whole range of losses; those of the best plan and of the chosen one differ by
  // less than a quarter of it all the same.
  for (const uint64_t stream : {1, 2, 3, 4, 5}) {
    const auto needs = needs_of(24, stream);
    const auto formula = [&](const SelectLayers& select) { return drift_loss(select, needs); };
    double worst = 0;
    for (int l = 3; l < 24; ++l) worst = std::max(worst, formula({2, l}));
    Invented invented(formula, worst);
    LossTable table = invented.table();
    const auto found = search_plans(table, options(24, 1));
    const double best = formula(best_of_all(formula, 24, 1));
    EXPECT_LE(formula(found[0][0].plan.select) - best, 0.25 * (worst - best)) << format_select(found[0][0].plan.select);
  }
}

TEST(PlanSearch, BeamAndRefinementComeCloseToTheBestSets) {
  double found_sum = 0, best_sum = 0;
  for (const uint64_t stream : {1, 2, 3, 4, 5, 6}) {
    const auto needs = needs_of(16, stream);
    const auto formula = [&](const SelectLayers& select) { return drift_loss(select, needs); };
    Invented invented(formula);
    LossTable table = invented.table();
    const auto found = search_plans(table, options(16, 3));
    ASSERT_EQ(found.size(), 3u);
    for (size_t n = 0; n < 3; ++n) {
      EXPECT_EQ(found[n][0].plan.select.size(), n + 2);
      for (size_t i = 1; i < found[n].size(); ++i) EXPECT_LE(found[n][i - 1].loss.mean(), found[n][i].loss.mean());
    }
    found_sum += formula(found[2][0].plan.select);
    best_sum += formula(best_of_all(formula, 16, 3));
  }
  EXPECT_LE(found_sum, 1.05 * best_sum);
}

TEST(PlanSearch, RefinementMovesALayerThatWasRightOnlyWhileItWasAlone) {
  // Alone, 10 is best. Together, 7 and 14 are, which no addition to 10 reaches.
  const auto formula = [](const SelectLayers& select) {
    const auto miss = [](int layer, int wanted) { return 0.01 * std::abs(layer - wanted); };
    if (select.size() == 2) return 1 + miss(select[0], 2) + miss(select[1], 10);
    return 0.5 + miss(select[0], 2) + miss(select[1], 7) + miss(select[2], 14);
  };
  Invented invented(formula);
  LossTable table = invented.table();
  SearchOptions search = options(20, 2);
  search.beam = 1;
  EXPECT_THAT(search_plans(table, search)[1][0].plan.select, ElementsAre(2, 7, 14));
  search.refinements = 0;
  Invented again(formula);
  LossTable other = again.table();
  EXPECT_THAT(search_plans(other, search)[1][0].plan.select, testing::Not(ElementsAre(2, 7, 14)));
}

TEST(PlanSearch, TiesGoToLowerLayers) {
  Invented invented([](const SelectLayers& select) { return select.size() == 3 ? 1.0 : 2.0; });
  LossTable table = invented.table();
  const auto found = search_plans(table, options(8, 2));
  EXPECT_THAT(found[0][0].plan.select, ElementsAre(1, 2));
  EXPECT_THAT(found[1][0].plan.select, ElementsAre(1, 2, 3));
}

TEST(PlanSearch, KnownLossesAreNotAskedForAndLeadToTheSamePlans) {
  const auto needs = needs_of(18, 7);
  Invented invented([&](const SelectLayers& select) { return drift_loss(select, needs); }, 0.3);
  std::vector<std::tuple<Candidate, int, TextLoss>> rows;
  LossTable source = invented.table();
  const auto record = [&](std::span<const Candidate> plans, int text) {
    std::vector<TextLoss> losses;
    source.require(plans, text, text + 1);
    for (const Candidate& plan : plans) {
      losses.push_back(source.over(plan, text, text + 1));
      rows.emplace_back(plan, text, losses.back());
    }
    return losses;
  };
  LossTable table(record);
  const auto found = search_plans(table, options(18, 3));
  // Cut anywhere, as a kill would.
  for (const size_t kept : {size_t{0}, rows.size() / 3, rows.size() - 1, rows.size()}) {
    size_t asked = 0;
    LossTable resumed([&](std::span<const Candidate> plans, int text) {
      std::vector<TextLoss> losses;
      for (const Candidate& plan : plans) losses.push_back(source.over(plan, text, text + 1));
      asked += plans.size();
      return losses;
    });
    for (size_t i = 0; i < kept; ++i) resumed.add(std::get<0>(rows[i]), std::get<1>(rows[i]), std::get<2>(rows[i]));
    const auto again = search_plans(resumed, options(18, 3));
    EXPECT_EQ(asked, rows.size() - kept);
    ASSERT_EQ(again.size(), found.size());
    for (size_t n = 0; n < found.size(); ++n) {
      ASSERT_EQ(again[n].size(), found[n].size());
      for (size_t i = 0; i < found[n].size(); ++i) EXPECT_EQ(again[n][i].plan.select, found[n][i].plan.select);
    }
  }
}

TEST(PlanSearch, StopsWhereTheModelHasNoMoreLayers) {
  Invented invented([](const SelectLayers& select) { return 1.0 / static_cast<double>(select.size()); });
  LossTable table = invented.table();
  SearchOptions search = options(4, 4);
  search.first_select = {1, 2};
  const auto found = search_plans(table, search);
  ASSERT_EQ(found.size(), 4u);
  EXPECT_THAT(found[1][0].plan.select, ElementsAre(1, 2, 3));
  EXPECT_TRUE(found[2].empty());
  EXPECT_TRUE(found[3].empty());
}

TEST(PlanSearch, StopsWhereItIsToldThatThereIsEnough) {
  const auto formula = [](const SelectLayers& select) { return 1.0 / static_cast<double>(select.size()); };
  SearchOptions search = options(12, 4);
  std::vector<size_t> asked;
  search.enough = [&](const RankedPlan& best) {
    asked.push_back(best.plan.select.size());
    return asked.size() == 2;
  };
  Invented invented(formula);
  LossTable table = invented.table();
  const auto found = search_plans(table, search);
  EXPECT_THAT(asked, ElementsAre(2, 3));
  ASSERT_EQ(found.size(), 4u);
  EXPECT_FALSE(found[1].empty());
  EXPECT_TRUE(found[2].empty());
  EXPECT_FALSE(invented.was_asked({1, 2, 3, 4}, 0));
}

TEST(PlanSearch, NaNAndInfinityAreNeverBest) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  Invented invented([&](const SelectLayers& select) {
    return select.back() == 9 ? 3.0 : select.back() % 2 == 0 ? nan : infinity;
  });
  LossTable table = invented.table();
  EXPECT_EQ(search_plans(table, options(12, 1))[0][0].plan.select.back(), 9);
}

TEST(PlanSearch, RefusesWhatLeavesNothingToTry) {
  LossTable table([](std::span<const Candidate> plans, int) { return std::vector<TextLoss>(plans.size()); });
  const auto error = [&](const std::function<void(SearchOptions&)>& change) {
    SearchOptions search = options(12, 2);
    change(search);
    return test::error_of([&] { search_plans(table, search); });
  };
  EXPECT_THAT(error([](SearchOptions& o) { o.first_select.clear(); }), HasSubstr("first Select layer"));
  EXPECT_THAT(error([](SearchOptions& o) { o.first_select = {12}; }), HasSubstr("first Select layer"));
  EXPECT_THAT(error([](SearchOptions& o) { o.selects = 0; }), HasSubstr("at least 1"));
  EXPECT_THAT(error([](SearchOptions& o) { o.rungs = {}; }), HasSubstr("rung"));
  EXPECT_THAT(error([](SearchOptions& o) { o.rungs = {4, 2}; }), HasSubstr("rung"));
  EXPECT_THAT(error([](SearchOptions& o) { o.beam = 0; }), HasSubstr("at least one"));
  EXPECT_THAT(error([](SearchOptions& o) {
                o.layers = 2;
                o.first_select = {1};
              }),
              HasSubstr("too shallow"));
}

TEST(Halve, KeepsTheBestThirdAndTheBestOfEveryFirstLayer) {
  std::vector<SelectLayers> plans;
  for (int first = 1; first <= 3; ++first) {
    for (int l = 4; l < 14; ++l) plans.push_back({first, l});
  }
  // First Select 1 is far worse than all others.
  Invented invented([](const SelectLayers& select) { return select[1] * 0.01 + (select[0] == 1 ? 5 : 0); });
  LossTable table = invented.table();
  const std::vector<int> rungs = {1, 2, 3};
  const auto kept = halve(table, plans, rungs, 2);
  EXPECT_EQ(invented.asked(0), 30u);
  EXPECT_EQ(invented.asked(1), 11u);  // a third, and the best of first Select 1
  EXPECT_EQ(invented.asked(2), 3u);
  ASSERT_EQ(kept.size(), 3u);
  EXPECT_THAT(kept[0].plan.select, ElementsAre(2, 4));
  EXPECT_THAT(kept[1].plan.select, ElementsAre(3, 4));
  EXPECT_THAT(kept[2].plan.select, ElementsAre(1, 4));
  EXPECT_EQ(kept[0].loss.tokens, 3 * 32);
}

TEST(Halve, OneRungMeasuresAllOnAllTexts) {
  std::vector<SelectLayers> plans = {{2, 5}, {2, 4}, {2, 9}};
  Invented invented([](const SelectLayers& select) { return select[1] * 0.01; });
  LossTable table = invented.table();
  const std::vector<int> rungs = {4};
  EXPECT_EQ(halve(table, plans, rungs, 1).size(), 3u);
  EXPECT_EQ(invented.asked(3), 3u);
  EXPECT_TRUE(halve(table, {}, rungs, 1).empty());
}

TEST(Neighbours, MoveByTwoOrLoseOne) {
  const SearchOptions search = options(12, 3);
  const auto found = neighbours({2, 5, 11}, search);
  const std::set<SelectLayers> expected = {{1, 5, 11}, {3, 5, 11}, {2, 3, 11}, {2, 4, 11}, {2, 6, 11},
                                           {2, 7, 11}, {2, 5, 9},  {2, 5, 10}, {2, 5},     {2, 11}};
  EXPECT_EQ(std::set<SelectLayers>(found.begin(), found.end()), expected);
  // The last further layer stays, nothing meets or passes the first.
  for (const SelectLayers& select : neighbours({3, 4}, search)) {
    EXPECT_EQ(select.size(), 2u);
    EXPECT_TRUE(select[0] < select[1] && select[0] >= 1 && select[0] <= 3) << format_select(select);
  }
}

}  // namespace
}  // namespace tidal
