// Cache correction: polluted K/V become what dense attention computes, and nothing else changes.
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::random_tokens;
using test::same_bits;
using test::small_plan;
using test::SmallEngine;

class Correction : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, Correction, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

/// Decodes `tokens` one by one.
void decode(SmallEngine& setup, Sequence& sequence, const std::vector<Token>& tokens) {
  for (const Token token : tokens) setup.engine.decode(sequence, token);
}

TEST_P(Correction, TheCacheBecomesThatOfADenseRun) {
  SmallEngine setup(GetParam());
  for (const int count : {1, 3, 8, 9, 70}) {
    const std::vector<Token> more = random_tokens(count, 5);
    Sequence dense = setup.prefilled(100, 1), sparse = setup.prefilled(100, 1);
    setup.engine.prefill(dense, more);
    decode(setup, sparse, more);
    EXPECT_EQ(sparse.clean(), 100);
    EXPECT_FALSE(same_bits(setup.cache(sparse), setup.cache(dense))) << "nothing was polluted, so this tests nothing";
    setup.engine.correct(sparse);
    EXPECT_EQ(sparse.clean(), 100 + count);
    // The same chunk at the same position: the same arithmetic.
    EXPECT_TRUE(same_bits(setup.cache(sparse), setup.cache(dense))) << count;
  }
}

TEST_P(Correction, CleanSequencesStayAsTheyAre) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(70, 1);
  const std::vector<Bf16> before = setup.cache(sequence);
  setup.engine.correct(sequence);
  EXPECT_TRUE(same_bits(setup.cache(sequence), before));
  Sequence empty = setup.engine.create();
  setup.engine.correct(empty);
  EXPECT_EQ(empty.length(), 0);
}

TEST_P(Correction, MoreThanAChunkTakesSeveral) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 256, .tokens = 1024, .chunk = 16});
  const std::vector<Token> more = random_tokens(40, 5);
  Sequence dense = setup.prefilled(64, 1), sparse = setup.prefilled(64, 1);
  setup.engine.prefill(dense, more);
  decode(setup, sparse, more);
  setup.engine.correct(sparse);
  EXPECT_EQ(sparse.clean(), 104);
  EXPECT_TRUE(same_bits(setup.cache(sparse), setup.cache(dense)));
}

TEST_P(Correction, TogetherWithTheNextToken) {
  SmallEngine setup(GetParam());
  std::vector<Token> more = random_tokens(6, 5);
  Sequence sparse = setup.prefilled(90, 1), dense = setup.prefilled(90, 1);
  decode(setup, sparse, {more.begin(), more.end() - 1});
  const Engine::Request request{
      .sequence = &sparse, .tokens = {&more.back(), 1}, .all_logits = true, .correct = 5, .plan = nullptr};
  const auto logits = setup.engine.step({&request, 1});
  const std::vector<float> corrected(logits.begin(), logits.end());
  const Engine::Request whole{.sequence = &dense, .tokens = more, .all_logits = true};
  const auto expected = setup.engine.step({&whole, 1});
  EXPECT_EQ(corrected, std::vector<float>(expected.begin(), expected.end()));
  EXPECT_EQ(corrected.size(), more.size() * setup.model.hp.vocab);
  EXPECT_TRUE(same_bits(setup.cache(sparse), setup.cache(dense)));
  EXPECT_EQ(sparse.clean(), 96);
}

TEST_P(Correction, ForksKeepTheirOwn) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(100, 1);
  decode(setup, sequence, random_tokens(40, 5));
  const Sequence fork = sequence.fork();
  const std::vector<Bf16> polluted = setup.cache(fork);
  setup.engine.correct(sequence);
  EXPECT_TRUE(same_bits(setup.cache(fork), polluted));
  EXPECT_EQ(fork.clean(), 100);
  EXPECT_FALSE(same_bits(setup.cache(sequence), polluted));
}

TEST_P(Correction, DueAtDifferentStepsInABatchAsAlone) {
  Plan plan = small_plan();
  plan.correct = 4;
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  const std::vector<Token> more = random_tokens(11, 5);
  // Alone.
  std::vector<std::vector<Bf16>> alone;
  for (int s = 0; s < 3; ++s) {
    Sequence sequence = setup.prefilled(60 + s, s);
    decode(setup, sequence, random_tokens(s, 9));
    decode(setup, sequence, more);
    EXPECT_LT(sequence.length() - sequence.clean(), 5);
    alone.push_back(setup.cache(sequence));
  }
  // Together, each with another number of polluted tokens at the start.
  std::vector<Sequence> sequences;
  for (int s = 0; s < 3; ++s) {
    sequences.push_back(setup.prefilled(60 + s, s));
    decode(setup, sequences.back(), random_tokens(s, 9));
  }
  for (const Token token : more) {
    std::vector<Engine::Request> requests;
    for (Sequence& sequence : sequences) {
      requests.push_back({.sequence = &sequence, .tokens = {&token, 1}, .decode = true});
    }
    setup.engine.step(requests);
  }
  for (int s = 0; s < 3; ++s) EXPECT_TRUE(same_bits(setup.cache(sequences[s]), alone[s])) << s;
}

TEST_P(Correction, EveryTokenKeepsTheCacheClean) {
  Plan plan = small_plan();
  plan.correct = 1;
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  const std::vector<Token> more = random_tokens(9, 5);
  Sequence sequence = setup.prefilled(100, 1), dense = setup.prefilled(100, 1);
  decode(setup, sequence, more);
  EXPECT_EQ(sequence.clean(), 108);  // all but the last one
  for (const Token token : more) {
    const Engine::Request request{.sequence = &dense, .tokens = {&token, 1}};
    setup.engine.step({&request, 1});
  }
  setup.engine.correct(sequence);
  EXPECT_TRUE(same_bits(setup.cache(sequence), setup.cache(dense)));
}

TEST_P(Correction, PrefillComesAfterIt) {
  Plan plan = small_plan();
  plan.correct = 100;
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, random_tokens(5, 5));
  setup.engine.prefill(sequence, random_tokens(7, 6));
  EXPECT_EQ(sequence.clean(), 72);
}

TEST_P(Correction, WithoutMemoryNothingIsLost) {
  // Two sequences of two blocks share everything; copies for a correction do not fit.
  SmallEngine setup(GetParam(), GGML_TYPE_F32, small_plan(), {.context = 192, .tokens = 192, .sequences = 1});
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, random_tokens(70, 5));
  const std::vector<Token> tokens(sequence.tokens().begin(), sequence.tokens().end());
  const std::vector<Bf16> before = setup.cache(sequence);
  {
    const Sequence fork = sequence.fork();
    const std::string error = test::error_of([&] { setup.engine.correct(sequence); });
    EXPECT_NE(error.find("KV cache: 0 more tokens need 3 blocks"), std::string::npos) << error;
    EXPECT_EQ(std::vector<Token>(sequence.tokens().begin(), sequence.tokens().end()), tokens);
    EXPECT_EQ(sequence.clean(), 60);
    EXPECT_TRUE(same_bits(setup.cache(sequence), before));
  }
  setup.engine.correct(sequence);
  EXPECT_EQ(sequence.clean(), 130);
}

TEST_P(Correction, OfTooManyIsRefused) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, random_tokens(3, 5));
  const Token token = 1;
  const auto refused = [&](const Engine::Request& request) {
    return test::error_of([&] { setup.engine.step({&request, 1}); });
  };
  EXPECT_EQ(refused({.sequence = &sequence, .tokens = {}, .correct = 4}),
            "engine: 4 tokens to correct with 0 new ones, but 3 are polluted");
  EXPECT_EQ(refused({.sequence = &sequence, .tokens = {&token, 1}, .correct = 2}),
            "engine: 2 tokens to correct with 1 new ones, but 3 are polluted");
  EXPECT_EQ(refused({.sequence = &sequence, .tokens = {}, .correct = -1}),
            "engine: -1 tokens to correct with 0 new ones, but 3 are polluted");
  EXPECT_EQ(sequence.length(), 63);
}

}  // namespace
}  // namespace tidal
