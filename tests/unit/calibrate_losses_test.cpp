// The losses of plans against decoding each alone, on a small random model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "eval/calibration_losses.h"
#include "eval/calibration_texts.h"
#include "support/error.h"
#include "support/small_model.h"

namespace tidal {
namespace {

using testing::ElementsAre;

constexpr int kLayers = 6;

std::vector<double> softmax(std::span<const float> logits) {
  double sum = 0;
  std::vector<double> p;
  for (const float logit : logits) sum += p.emplace_back(std::exp(static_cast<double>(logit)));
  for (double& value : p) value /= sum;
  return p;
}

/// Two texts, the second one with the first one's beginning.
std::vector<CalibrationText> texts() {
  std::vector<CalibrationText> texts(2);
  texts[0].prefix = test::random_tokens(150, 1);
  texts[0].steps = test::random_tokens(70, 2);
  texts[1].prefix = texts[0].prefix;
  texts[1].parent = 0;
  texts[1].shared = 90;
  const auto other = test::random_tokens(60, 3);
  std::copy(other.begin(), other.end(), texts[1].prefix.begin() + 90);
  texts[1].steps = test::random_tokens(11, 4);
  return texts;
}

class CalibrationLossesTest : public testing::Test {
 protected:
  explicit CalibrationLossesTest(int threads = 1)
      : backend_(make_backend("cpu", threads)),
        model_(test::random_small_model(test::small_shape(kLayers), GGML_TYPE_F32, *backend_)) {}

  CalibrationLosses losses(CalibrationLosses::Options options = {.batch = 2, .prefilled = {}, .decoded = {}}) {
    return {*backend_, model_, texts_, policies_, std::move(options)};
  }

  std::unique_ptr<Backend> backend_;
  Model model_;
  const std::vector<CalibrationText> texts_ = texts();
  const CandidatePolicies policies_ = {default_policy(24), sketch_policy(24)};
};

TEST_F(CalibrationLossesTest, AreTheKlOfEveryStepDecodedAlone) {
  const std::vector<Candidate> plans = {Candidate::tidal({1, 3}),         Candidate::tidal({2, 4}),
                                        Candidate::sketch(2, 0),          Candidate::tidal({2, 3, 4}),
                                        Candidate::sketch(4, 1, {3, 4}),  Candidate::sketch(1, 2),
                                        Candidate::tidal({1, 2, 3, 4, 5})};
  CalibrationLosses calibration = losses();
  for (const int text : {1, 0}) {
    const std::vector<TextLoss> measured = calibration.measure(plans, text);
    ASSERT_EQ(measured.size(), plans.size());
    const CalibrationText& source = texts_[static_cast<size_t>(text)];
    for (size_t i = 0; i < plans.size(); ++i) {
      const Plan plan = plan_with(plans[i], kLayers, policies_);
      Engine engine(*backend_, model_, plan, {.context = 256, .tokens = 512});
      Engine full(*backend_, model_, Plan::full(kLayers), {.context = 256, .tokens = 512});
      Sequence a = engine.create(), b = full.create();
      engine.prefill(a, source.prefix);
      full.prefill(b, source.prefix);
      double sum = 0, squares = 0;
      for (const Token token : source.steps) {
        const auto p = softmax(full.decode(b, token)), q = softmax(engine.decode(a, token));
        double kl = 0;
        for (size_t v = 0; v < p.size(); ++v) kl += p[v] * std::log(p[v] / q[v]);
        sum += kl;
        squares += kl * kl;
      }
      EXPECT_EQ(measured[i].tokens, static_cast<int64_t>(source.steps.size()));
      // Sums of about 100 terms in double, of logits that are the same but for the chunks of the prefill.
      EXPECT_NEAR(measured[i].sum, sum, 1e-3 * sum) << format_candidate(plans[i]) << " on text " << text;
      EXPECT_NEAR(measured[i].squares, squares, 2e-3 * squares);
      // The last plan has no Sparse layer.
      EXPECT_EQ(measured[i].mean() > 0, i + 1 < plans.size());
    }
  }
}

TEST(CalibrationLossesOfHybrids, HaveRoomForWhatIsComputedAgain) {
  // Long enough that the states kept of the first text lie behind where the others part from it.
  std::vector<CalibrationText> texts(1);
  texts[0].prefix = test::random_tokens(1500, 1);
  texts[0].steps = test::random_tokens(5, 2);
  for (const int shared : {1490, 500, 450, 300}) {
    CalibrationText& text = texts.emplace_back();
    text.prefix = test::random_tokens(1500, 3);
    std::copy_n(texts[0].prefix.begin(), shared, text.prefix.begin());
    text.parent = 0;
    text.shared = shared;
    text.steps = test::random_tokens(5, 4);
  }
  CalibrationText& further = texts.emplace_back();
  further.prefix = texts[0].prefix;
  further.prefix.insert(further.prefix.end(), texts[0].steps.begin(), texts[0].steps.end());
  further.parent = 0;
  further.shared = 1500;
  further.steps = test::random_tokens(5, 5);

  const auto backend = make_backend("cpu", 2);
  const Model model = test::random_small_model(test::small_hybrid(), GGML_TYPE_F32, *backend);
  const CandidatePolicies policies = {default_policy(24), sketch_policy(24)};
  const std::vector<Candidate> plans = {Candidate::tidal({2, 4})};
  CalibrationLosses together(*backend, model, texts, policies, {.batch = 1, .prefilled = {}, .decoded = {}});
  for (int text = 0; text < static_cast<int>(texts.size()); ++text) {
    const TextLoss loss = together.measure(plans, text)[0];
    EXPECT_EQ(loss.tokens, 5) << text;
    EXPECT_GT(loss.mean(), 0) << text;
  }
}

TEST_F(CalibrationLossesTest, DependNeitherOnCompanyNorOnThreadsNorOnOrder) {
  const std::vector<Candidate> plans = {Candidate::tidal({2, 4}), Candidate::sketch(2, 1), Candidate::sketch(4, 0, {2}),
                                        Candidate::tidal({2, 3, 4}), Candidate::sketch(1, 0)};
  std::vector<double> alone;
  {
    CalibrationLosses calibration = losses({.batch = 1, .prefilled = {}, .decoded = {}});
    for (const Candidate& plan : plans) alone.push_back(calibration.measure(std::span(&plan, 1), 1)[0].sum);
  }
  const auto backend = make_backend("cpu", 3);
  const Model model = test::random_small_model(test::small_shape(kLayers), GGML_TYPE_F32, *backend);
  CalibrationLosses together(*backend, model, texts_, policies_, {.batch = 4, .prefilled = {}, .decoded = {}});
  together.measure(plans, 0);
  const std::vector<TextLoss> measured = together.measure(plans, 1);
  for (size_t i = 0; i < plans.size(); ++i) EXPECT_EQ(measured[i].sum, alone[i]) << format_candidate(plans[i]);
}

TEST_F(CalibrationLossesTest, CountsItsWorkOnceAndStopsWhenTold) {
  int64_t prefilled = 0, decoded = 0;
  CalibrationLosses::Options options;
  options.batch = 2;
  options.prefilled = [&](int64_t tokens) { return prefilled += tokens, true; };
  options.decoded = [&](int64_t steps) { return decoded += steps, true; };
  const std::vector<Candidate> plans = {Candidate::tidal({2, 4}), Candidate::sketch(2, 0), Candidate::tidal({3, 5})};
  CalibrationLosses calibration = losses(options);
  calibration.measure(plans, 1);
  EXPECT_EQ(prefilled, 150 + 60);  // the parent, and what differs from it
  EXPECT_EQ(decoded, 3 * 11);
  calibration.measure(plans, 0);
  calibration.measure(plans, 1);
  EXPECT_EQ(prefilled, 150 + 60);

  options.decoded = [](int64_t) { return false; };
  CalibrationLosses stopping = losses(options);
  EXPECT_THROW(stopping.measure(plans, 0), CalibrationLosses::Halted);
  options.prefilled = [](int64_t) { return false; };
  CalibrationLosses earlier = losses(options);
  EXPECT_THROW(earlier.measure(plans, 0), CalibrationLosses::Halted);
}

TEST_F(CalibrationLossesTest, TimesAStep) {
  EXPECT_GT(losses().step_seconds(plan_with(Candidate::tidal({2, 4}), kLayers, policies_)), 0);
}

TEST(SpreadPlaces, FromTheStartToTheEnd) {
  EXPECT_THAT(spread_places(3, 10, 110), ElementsAre(0, 50, 100));
  EXPECT_THAT(spread_places(1, 10, 110), ElementsAre(50));
  EXPECT_THAT(spread_places(2, 10, 10), ElementsAre(0, 0));
  EXPECT_TRUE(spread_places(0, 10, 110).empty());
}

}  // namespace
}  // namespace tidal
