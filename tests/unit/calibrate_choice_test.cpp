// Which of the plans that a search found is taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "eval/calibration_choice.h"
#include "support/error.h"

namespace tidal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Two plans for every number of further layers from 1 to 4; KL .40, .20, .17, .165, and worse ones.
std::vector<FoundPlan> plans() {
  return {{{2, 9}, 0.40, 100},           {{1, 9}, 0.44, 90},          {{2, 5, 9}, 0.20, 110},
          {{1, 5, 9}, 0.21, 100},        {{2, 5, 7, 9}, 0.17, 120},   {{3, 5, 7, 9}, 0.18, 130},
          {{2, 5, 6, 7, 9}, 0.165, 130}, {{2, 4, 6, 7, 9}, 0.19, 130}};
}

SelectLayers chosen(const Wanted& wanted, const std::vector<FoundPlan>& from = plans()) {
  return from[choose_plan(from, wanted)].select;
}

TEST(ChoosePlan, AtMostSoManySelectLayers) {
  EXPECT_THAT(chosen({.selects = 1}), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.selects = 2}), ElementsAre(2, 5, 9));
  EXPECT_THAT(chosen({.selects = 4}), ElementsAre(2, 5, 6, 7, 9));
  EXPECT_THAT(chosen({.selects = 9}), ElementsAre(2, 5, 6, 7, 9));
  // Fewer where fewer are better.
  std::vector<FoundPlan> worse_with_more = plans();
  for (FoundPlan& plan : worse_with_more) {
    if (plan.select.size() > 3) plan.kl = 0.3;
  }
  EXPECT_THAT(chosen({.selects = 4}, worse_with_more), ElementsAre(2, 5, 9));
}

TEST(ChoosePlan, CheapestThatMeetsATarget) {
  EXPECT_THAT(chosen({.target_kl = 0.5}), ElementsAre(1, 9));
  EXPECT_THAT(chosen({.target_kl = 0.40}), ElementsAre(1, 5, 9));  // as cheap as {2, 9}, and better
  EXPECT_THAT(chosen({.target_kl = 0.2}), ElementsAre(2, 5, 9));
  EXPECT_THAT(chosen({.target_kl = 0.165}), ElementsAre(2, 5, 6, 7, 9));
  EXPECT_EQ(test::error_of([] { chosen({.target_kl = 0.1}); }),
            "--target-kl: no plan has a KL of at most 0.1; the best one found, Select 2 + 5, 6, 7, 9, has 0.165");
}

TEST(ChoosePlan, TheKneeIsWhereOneMoreBringsLessThanATenth) {
  // .40 -> .20 -> .17 (15 % less) -> .165 (3 % less).
  EXPECT_THAT(chosen({}), ElementsAre(2, 5, 7, 9));
  std::vector<FoundPlan> flat = {{{2, 9}, 0.40, 100}, {{2, 5, 9}, 0.37, 110}, {{2, 5, 7, 9}, 0.1, 120}};
  EXPECT_THAT(chosen({}, flat), ElementsAre(2, 9));
  flat[1].kl = 0.36;
  EXPECT_THAT(chosen({}, flat), ElementsAre(2, 5, 7, 9));
}

TEST(ChoosePlan, NaNIsNeverTaken) {
  const std::vector<FoundPlan> some = {{{1, 9}, kNaN, 10}, {{2, 9}, 0.4, 100}, {{2, 5, 9}, kNaN, 110}};
  EXPECT_THAT(chosen({}, some), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.selects = 3}, some), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.target_kl = 1}, some), ElementsAre(2, 9));
  EXPECT_THAT(test::error_of([] { choose_plan({}, {}); }), HasSubstr("no plan"));
}

TEST(BestBySelects, OnePlanForEveryNumber) {
  EXPECT_THAT(best_by_selects(plans()), ElementsAre(0, 2, 4, 6));
  // Equal KL: the cheaper one.
  const std::vector<FoundPlan> ties = {{{3, 9}, 0.4, 110}, {{2, 9}, 0.4, 100}};
  EXPECT_THAT(best_by_selects(ties), ElementsAre(1));
}

TEST(StepTimeTest, GoesThroughBothMeasurements) {
  const StepTime time(1000, 0.020, 600, 0.016);
  EXPECT_DOUBLE_EQ(time.seconds(1000), 0.020);
  EXPECT_DOUBLE_EQ(time.seconds(600), 0.016);
  EXPECT_DOUBLE_EQ(time.seconds(800), 0.018);
}

TEST(StepTimeTest, IsProportionalWhereTheMeasurementsMakeNoRisingLine) {
  // Fewer bytes in more time; the same bytes; a line that starts below zero.
  for (const StepTime& time :
       {StepTime(1000, 0.020, 600, 0.030), StepTime(1000, 0.020, 1000, 0.021), StepTime(1000, 0.020, 600, 0.001)}) {
    EXPECT_DOUBLE_EQ(time.seconds(500), 0.010);
  }
}

}  // namespace
}  // namespace tidal
