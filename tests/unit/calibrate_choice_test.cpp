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

Candidate tidal(SelectLayers select) { return Candidate::tidal(std::move(select)); }

/// Two plans for every number of further layers from 1 to 4; KL .40, .20, .17, .165, and worse ones.
std::vector<FoundPlan> plans() {
  return {{tidal({2, 9}), 0.40, 100},           {tidal({1, 9}), 0.44, 90},          {tidal({2, 5, 9}), 0.20, 110},
          {tidal({1, 5, 9}), 0.21, 100},        {tidal({2, 5, 7, 9}), 0.17, 120},   {tidal({3, 5, 7, 9}), 0.18, 130},
          {tidal({2, 5, 6, 7, 9}), 0.165, 130}, {tidal({2, 4, 6, 7, 9}), 0.19, 130}};
}

SelectLayers chosen(const Wanted& wanted, const std::vector<FoundPlan>& from = plans()) {
  return from[choose_plan(from, wanted)].plan.select;
}

TEST(ChoosePlan, AtMostSoManySelectLayers) {
  EXPECT_THAT(chosen({.selects = 1}), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.selects = 2}), ElementsAre(2, 5, 9));
  EXPECT_THAT(chosen({.selects = 4}), ElementsAre(2, 5, 6, 7, 9));
  EXPECT_THAT(chosen({.selects = 9}), ElementsAre(2, 5, 6, 7, 9));
  // Fewer where fewer are better.
  std::vector<FoundPlan> worse_with_more = plans();
  for (FoundPlan& plan : worse_with_more) {
    if (plan.plan.select.size() > 3) plan.kl = 0.3;
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
  std::vector<FoundPlan> flat = {
      {tidal({2, 9}), 0.40, 100}, {tidal({2, 5, 9}), 0.37, 110}, {tidal({2, 5, 7, 9}), 0.1, 120}};
  EXPECT_THAT(chosen({}, flat), ElementsAre(2, 9));
  flat[1].kl = 0.36;
  EXPECT_THAT(chosen({}, flat), ElementsAre(2, 5, 7, 9));
}

TEST(ChoosePlan, NaNIsNeverTaken) {
  const std::vector<FoundPlan> some = {
      {tidal({1, 9}), kNaN, 10}, {tidal({2, 9}), 0.4, 100}, {tidal({2, 5, 9}), kNaN, 110}};
  EXPECT_THAT(chosen({}, some), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.selects = 3}, some), ElementsAre(2, 9));
  EXPECT_THAT(chosen({.target_kl = 1}, some), ElementsAre(2, 9));
  EXPECT_THAT(test::error_of([] { choose_plan({}, {}); }), HasSubstr("no plan"));
}

/// Sketch plans beside the tidal ones: KL .30 for 40 bytes down to .10 for 80.
std::vector<FoundPlan> both() {
  std::vector<FoundPlan> all = plans();
  all.push_back({Candidate::sketch(2, 0), 0.105, 70});
  all.push_back({Candidate::sketch(2, 0, {5, 6, 7, 8}), 0.30, 40});
  all.push_back({Candidate::sketch(4, 0), 0.100, 80});
  all.push_back({Candidate::sketch(1, 0), 0.20, 60});
  return all;
}

size_t chosen_of(const std::vector<FoundPlan>& from, const Wanted& wanted = {}) { return choose_plan(from, wanted); }

TEST(ChoosePlan, ATargetTakesTheCheapestOfAllKinds) {
  const size_t first = plans().size();
  EXPECT_EQ(chosen_of(both(), {.target_kl = 0.5}), first + 1);
  EXPECT_EQ(chosen_of(both(), {.target_kl = 0.25}), first + 3);
  EXPECT_EQ(chosen_of(both(), {.target_kl = 0.102}), first + 2);
  EXPECT_EQ(test::error_of([] { chosen_of(both(), {.target_kl = 0.01}); }),
            "--target-kl: no plan has a KL of at most 0.01; the best one found, 4-bit Scan, has 0.1");
  // A tidal plan where that is the cheaper one.
  std::vector<FoundPlan> dear = both();
  for (FoundPlan& plan : dear) plan.bytes += plan.plan.kind == PlanKind::Sketch ? 100 : 0;
  EXPECT_EQ(dear[chosen_of(dear, {.target_kl = 0.5})].plan, tidal({1, 9}));
}

TEST(ChoosePlan, OfSketchPlansTheCheapestThatIsGoodEnough) {
  // 4 bits improve on .105 by less than a tenth.
  const std::vector<FoundPlan> all = both();
  const std::vector<FoundPlan> sketches(all.begin() + 8, all.end());
  EXPECT_EQ(chosen_of(sketches), 0u);
  std::vector<FoundPlan> better = sketches;
  better[2].kl = 0.09;
  EXPECT_EQ(chosen_of(better), 2u);
  // Selects limit the other kind only.
  EXPECT_EQ(chosen_of(sketches, {.selects = 1}), 0u);
}

TEST(ChoosePlan, TheDearerKindMustImproveByATenth) {
  // The knees are tidal .17 for 120 bytes, and a sketch.
  std::vector<FoundPlan> all = plans();
  all.push_back({Candidate::sketch(2, 0), 0.18, 70});
  EXPECT_EQ(chosen_of(all), 8u);  // cheaper, .17 is 6 % less
  all.back().kl = 0.20;           // .17 is 15 % less
  EXPECT_EQ(all[chosen_of(all)].plan, tidal({2, 5, 7, 9}));
  all.back() = {Candidate::sketch(2, 0), 0.16, 130};  // 6 % less than .17, and dearer
  EXPECT_EQ(all[chosen_of(all)].plan, tidal({2, 5, 7, 9}));
  all.back().kl = 0.12;
  EXPECT_EQ(chosen_of(all), 8u);
  all.back().kl = kNaN;
  all.back().bytes = 1;
  EXPECT_EQ(all[chosen_of(all)].plan, tidal({2, 5, 7, 9}));
  // With one further Select layer at most, tidal has .40.
  all.back() = {Candidate::sketch(2, 0), 0.38, 130};
  EXPECT_EQ(all[chosen_of(all, {.selects = 1})].plan, tidal({2, 9}));
  all.back().kl = 0.3;
  EXPECT_EQ(chosen_of(all, {.selects = 1}), 8u);
}

TEST(BestBySelects, OnePlanForEveryNumber) {
  EXPECT_THAT(best_by_selects(plans()), ElementsAre(0, 2, 4, 6));
  // Equal KL: the cheaper one.
  const std::vector<FoundPlan> ties = {{tidal({3, 9}), 0.4, 110}, {tidal({2, 9}), 0.4, 100}};
  EXPECT_THAT(best_by_selects(ties), ElementsAre(1));
  EXPECT_THAT(best_by_selects(both()), ElementsAre(0, 2, 4, 6));
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
