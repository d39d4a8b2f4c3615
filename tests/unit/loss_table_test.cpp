// Losses of candidates and what is worth its cost.
#include "eval/loss_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tidal {
namespace {

using testing::ElementsAre;

TEST(TextLossTest, MeanAndErrorAreThoseOfTheTokens) {
  TextLoss loss;
  EXPECT_EQ(loss.mean(), 0);
  EXPECT_EQ(loss.error(), 0);
  loss.add(1);
  EXPECT_EQ(loss.error(), 0);
  for (const double value : {2.0, 3.0, 6.0}) loss.add(value);
  EXPECT_DOUBLE_EQ(loss.mean(), 3);
  // Variance (4 + 1 + 0 + 9) / 3, of the mean of four.
  EXPECT_DOUBLE_EQ(loss.error(), std::sqrt(14.0 / 3 / 4));
}

TEST(LossTableTest, MeasuresOnceWhatIsAskedForTogether) {
  std::vector<std::pair<int, std::vector<Candidate>>> calls;
  LossTable table([&](std::span<const Candidate> plans, int text) {
    calls.emplace_back(text, std::vector<Candidate>(plans.begin(), plans.end()));
    std::vector<TextLoss> losses(plans.size());
    for (TextLoss& loss : losses) loss.add(text + 1);
    return losses;
  });
  const Candidate a = Candidate::tidal({2, 5}), b = Candidate::sketch(2, 0), c = Candidate::sketch(2, 0, {3});
  TextLoss known;
  known.add(7);
  table.add(b, 1, known);
  const std::vector<Candidate> plans = {a, b, a, c};
  table.require(plans, 0, 2);
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_THAT(calls[0].second, ElementsAre(a, b, c));
  EXPECT_THAT(calls[1].second, ElementsAre(a, c));
  table.require(plans, 0, 2);
  EXPECT_EQ(calls.size(), 2u);
  EXPECT_DOUBLE_EQ(table.over(b, 0, 2).mean(), (1 + 7) / 2.0);
  EXPECT_FALSE(table.known(Candidate::sketch(4, 0), 0));
  EXPECT_FALSE(table.known(Candidate::sketch(2, 1), 0));
}

TEST(CheapestGood, IsTheFirstThatTheLowestDoesNotImproveOnByATenth) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const auto of = [](std::vector<double> losses) { return cheapest_good(losses); };
  EXPECT_EQ(of({}), 0u);
  EXPECT_EQ(of({3}), 0u);
  EXPECT_EQ(of({1.2, 1.11, 1.0}), 1u);  // 1.0 > 0.9 * 1.11 = 0.999
  EXPECT_EQ(of({1.2, 1.12, 1.0}), 2u);
  EXPECT_EQ(of({1.0, 0.95, 0.88}), 1u);
  EXPECT_EQ(of({nan, infinity, 5, 4.9}), 2u);
  EXPECT_EQ(of({nan, nan}), 0u);
  EXPECT_EQ(of({0.1, 0, 0}), 1u);
  EXPECT_EQ(of({-1.0, -1.05}), 1u);
}

}  // namespace
}  // namespace tidal
