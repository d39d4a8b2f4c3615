// Plans that go over from full attention to sparse attention at a number of positions.
#include <algorithm>

#include "engine/exact.h"
#include "engine/greedy_chooser.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::kBudget;
using test::random_tokens;
using test::same_bits;
using test::SmallEngine;

constexpr int kLayers = 6, kNumber = 120;

Plan scan_plan(int full_below = kNumber) {
  Plan plan = Plan::sketch(kLayers, 0, sketch_policy(kBudget));
  plan.full_below = full_below;
  return plan;
}

Plan tidal_plan(int full_below = kNumber) {
  Plan plan = test::small_plan();
  plan.full_below = full_below;
  return plan;
}

class FullBelow : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, FullBelow, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

/// What a step of a copy of the sequence gives by another plan.
std::vector<float> step_of_copy(SmallEngine& setup, const Sequence& sequence, Token token, const Plan& plan) {
  Sequence copy = sequence.fork();
  const Engine::Request request{.sequence = &copy, .tokens = {&token, 1}, .decode = true, .plan = &plan};
  return test::copy(setup.engine.step({&request, 1}));
}

TEST_P(FullBelow, ASequenceGoesOverWhereThePlanSays) {
  for (const Plan& plan : {scan_plan(), tidal_plan()}) {
    SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
    Plan always = plan;
    always.full_below = 0;
    Sequence sequence = setup.prefilled(100, 1);
    for (int i = 0; i < 40; ++i) {
      const int context = sequence.length() + 1;
      const std::vector<float> full = step_of_copy(setup, sequence, i, Plan::full(kLayers));
      const std::vector<float> sparse = step_of_copy(setup, sequence, i, always);
      ASSERT_NE(full, sparse);
      EXPECT_EQ(test::copy(setup.engine.decode(sequence, i)), context < kNumber ? full : sparse) << context;
      EXPECT_EQ(sequence.clean(), std::min(context, kNumber - 1));
    }
  }
}

TEST_P(FullBelow, TheBudgetDecidesWhereItIsTheLarger) {
  Plan plan = scan_plan(kBudget / 2), always = scan_plan(0);
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  Sequence sequence = setup.prefilled(kBudget - 4, 1);
  for (int i = 0; i < 8; ++i) {
    const std::vector<float> expected = step_of_copy(setup, sequence, i, always);
    EXPECT_EQ(test::copy(setup.engine.decode(sequence, i)), expected);
    EXPECT_EQ(sequence.clean(), std::min(sequence.length(), kBudget));
  }
}

TEST_P(FullBelow, ABatchOfSeveralPlansIsAsAlone) {
  const Plan plans[] = {scan_plan(), scan_plan(200), scan_plan(0), tidal_plan(), Plan::full(kLayers), scan_plan()};
  const int lengths[] = {117, 197, 130, 117, 117, 160};  // three of them cross their number
  SmallEngine setup(GetParam(), GGML_TYPE_Q8_0, scan_plan());
  std::vector<Sequence> together, alone;
  for (const int length : lengths) {
    together.push_back(setup.prefilled(length, length));
    alone.push_back(together.back().fork());
  }
  const size_t vocab = setup.model.hp.vocab;
  for (int i = 0; i < 5; ++i) {
    const std::vector<Token> token = {i};
    std::vector<Engine::Request> requests;
    for (size_t s = 0; s < together.size(); ++s) {
      requests.push_back({.sequence = &together[s], .tokens = token, .decode = true, .plan = &plans[s]});
    }
    const std::vector<float> logits = test::copy(setup.engine.step(requests));
    for (size_t s = 0; s < alone.size(); ++s) {
      const Engine::Request request{.sequence = &alone[s], .tokens = token, .decode = true, .plan = &plans[s]};
      const auto own = setup.engine.step({&request, 1});
      EXPECT_TRUE(std::equal(own.begin(), own.end(), logits.begin() + static_cast<ptrdiff_t>(s * vocab))) << s;
      EXPECT_EQ(together[s].clean(), alone[s].clean()) << s;
    }
  }
  EXPECT_EQ(together[0].clean(), kNumber - 1);
  EXPECT_EQ(together[1].clean(), 199);
  EXPECT_EQ(together[4].clean(), together[4].length());
}

TEST_P(FullBelow, ExactModeDraftsFromThereOn) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  const Sequence prefix = setup.prefilled(100, 1);
  Sequence full = prefix.fork(), exact = prefix.fork();
  GreedyChooser chooser;
  std::vector<Token> expected, text;
  for (Token token = 7; expected.size() < 50;) {
    const Engine::Request request{.sequence = &full, .tokens = {&token, 1}};
    expected.push_back(token = chooser.choose(step(setup.engine, request, chooser)));
  }
  ExactDecoder decoder(setup.engine, {.drafts = 6, .adapt = false, .copy = false});
  for (Token token = 7; text.size() < 50; token = text.back()) {
    const bool below = exact.length() + 1 < kNumber;
    const int64_t before = decoder.statistics().sparse.drafted;
    const int left = 50 - static_cast<int>(text.size());
    const auto more = decoder.advance(exact, token, left, chooser);
    EXPECT_EQ(decoder.statistics().sparse.drafted > before, !below && left > 1) << exact.length();
    text.insert(text.end(), more.begin(), more.end());
  }
  EXPECT_EQ(text, expected);
  EXPECT_GT(decoder.statistics().sparse.drafted, 0);
}

TEST_P(FullBelow, OnlyWhatWasDecodedSparselyIsCorrected) {
  Plan plan = scan_plan();
  plan.correct = 1;
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  Sequence sequence = setup.prefilled(110, 1), dense = setup.prefilled(110, 1);
  for (const Token token : random_tokens(20, 5)) {
    setup.engine.decode(sequence, token);
    const int polluted = sequence.length() - sequence.clean();
    EXPECT_EQ(polluted, sequence.length() < kNumber ? 0 : 1);
    const Engine::Request request{.sequence = &dense, .tokens = {&token, 1}};
    setup.engine.step({&request, 1});
  }
  EXPECT_FALSE(same_bits(setup.cache(sequence), setup.cache(dense))) << "nothing was polluted, so this tests nothing";
  setup.engine.correct(sequence);
  EXPECT_TRUE(same_bits(setup.cache(sequence), setup.cache(dense)));
}

// Going back below the number is full attention again, over what is in the cache.
TEST_P(FullBelow, ATruncatedSequenceGoesBack) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  Sequence sequence = setup.prefilled(115, 1);
  for (int i = 0; i < 10; ++i) setup.engine.decode(sequence, i);
  sequence.truncate(110);
  const std::vector<float> full = step_of_copy(setup, sequence, 3, Plan::full(kLayers));
  EXPECT_EQ(test::copy(setup.engine.decode(sequence, 3)), full);
  EXPECT_EQ(sequence.clean(), 111);
}

TEST(FullBelowBytes, AreThoseOfTheAttentionThatTheStepTakes) {
  SmallEngine setup("cpu", GGML_TYPE_F32, scan_plan());
  for (const int context : {10, 100, kNumber - 1}) {
    EXPECT_EQ(setup.engine.decode_bytes(context), setup.engine.decode_bytes(context, Plan::full(kLayers))) << context;
  }
  for (const int context : {kNumber, 300}) {
    EXPECT_EQ(setup.engine.decode_bytes(context), setup.engine.decode_bytes(context, scan_plan(0))) << context;
    EXPECT_LT(setup.engine.decode_bytes(context), setup.engine.decode_bytes(context, Plan::full(kLayers))) << context;
  }
}

}  // namespace
}  // namespace tidal
