// The most likely tokens of a row of logits, against sorting all of them; and those that an engine's steps give.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "backend/likely_tokens.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

std::vector<LikelyToken> likely(const std::vector<float>& logits, size_t count) {
  std::vector<LikelyToken> tokens(count);
  select_likely(logits, tokens);
  return tokens;
}

std::vector<Token> tokens_of(const std::vector<LikelyToken>& likely) {
  std::vector<Token> tokens;
  for (const LikelyToken& one : likely) tokens.push_back(one.token);
  return tokens;
}

TEST(LikelyTokens, AreTheFirstOfAllSorted) {
  Random random(50);
  for (const int vocab : {1, 2, 97, 5000}) {
    for (const int values : {2, 10, 1000000}) {  // few values: many ties
      std::vector<float> logits;
      for (int i = 0; i < vocab; ++i) logits.push_back(static_cast<float>(random.integer(-values, values)) / 7.0f);
      std::vector<Token> sorted(vocab);
      std::iota(sorted.begin(), sorted.end(), 0);
      std::stable_sort(sorted.begin(), sorted.end(), [&](Token a, Token b) { return logits[a] > logits[b]; });
      for (const int count : {1, 2, 40, 1024, vocab}) {
        if (count > vocab) continue;
        const std::vector<LikelyToken> got = likely(logits, count);
        EXPECT_EQ(tokens_of(got), std::vector<Token>(sorted.begin(), sorted.begin() + count)) << vocab << ", " << count;
        for (const LikelyToken& one : got) EXPECT_EQ(one.logit, logits[one.token]);
      }
    }
  }
}

TEST(LikelyTokens, OfNoUsualNumbers) {
  EXPECT_EQ(tokens_of(likely({-kInfinity, 1, kInfinity, -kInfinity}, 4)), (std::vector<Token>{2, 1, 0, 3}));
  EXPECT_EQ(tokens_of(likely({0.0f, -0.0f, 0.0f}, 3)), (std::vector<Token>{0, 1, 2})) << "zeros are equal";
  // Before everything, so that a sampler finds them whatever it asks for.
  EXPECT_EQ(tokens_of(likely({1, kInfinity, kNaN, 3, -kNaN}, 3)), (std::vector<Token>{2, 4, 1}));
  EXPECT_EQ(tokens_of(likely({kNaN, 5, kNaN}, 1)), (std::vector<Token>{0}));
}

class EngineLikely : public BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, EngineLikely, testing::ValuesIn(kBackends),
                         [](const auto& info) { return info.param; });

/// Three sequences in an order that the batch does not keep, the second with the logits of all its tokens.
struct Mixed {
  explicit Mixed(SmallEngine& setup) {
    for (int i = 0; i < 3; ++i) {
      sequences.push_back(setup.prefilled(40 + 30 * i, 60 + i));
      tokens.push_back(random_tokens(i == 0 ? 20 : i == 1 ? 5 : 1, 70 + i));
    }
    for (int i = 0; i < 3; ++i) {
      requests.push_back({.sequence = &sequences[i], .tokens = tokens[i], .decode = i == 2, .all_logits = i == 1});
    }
  }
  std::vector<Sequence> sequences;
  std::vector<std::vector<Token>> tokens;
  std::vector<Engine::Request> requests;
};

TEST_P(EngineLikely, AreThoseOfTheLogits) {
  SmallEngine setup(GetParam());
  const size_t vocab = 97;
  for (const int count : {1, 5, 97}) {
    Mixed one(setup), other(setup);
    const std::vector<float> logits = copy(setup.engine.step(one.requests));
    const auto got = setup.engine.step(other.requests, count);
    ASSERT_EQ(logits.size(), 7 * vocab);
    ASSERT_EQ(got.size(), 7u * count);
    for (size_t row = 0; row < 7; ++row) {
      const std::vector<float> own(logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab);
      const auto of_row = got.subspan(row * count, count);
      EXPECT_EQ(std::vector<LikelyToken>(of_row.begin(), of_row.end()), likely(own, count)) << "row " << row;
    }
    for (int i = 0; i < 3; ++i) EXPECT_EQ(one.sequences[i].length(), other.sequences[i].length());
  }
}

TEST_P(EngineLikely, DecodingAgainAndAgain) {
  // On a device the same step is run, captured and replayed.
  SmallEngine setup(GetParam());
  Sequence one = setup.prefilled(50, 80), other = setup.prefilled(50, 80);
  Token token = 3;
  for (int step = 0; step < 20; ++step) {
    const auto logits = copy(setup.engine.decode(one, token));
    const auto got = setup.engine.decode(other, token, step % 5 == 4 ? 1 : 8);
    ASSERT_EQ(std::vector<LikelyToken>(got.begin(), got.end()), likely(logits, got.size())) << "step " << step;
    token = got.front().token;
  }
}

TEST_P(EngineLikely, RefusesCountsOutOfRange) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(5, 81);
  for (const int count : {0, -1, 98}) {
    EXPECT_NE(error_of([&] { setup.engine.decode(sequence, 1, count); }).find("expected 1 to 97"), std::string::npos);
  }
  EXPECT_EQ(sequence.length(), 5);
}

}  // namespace
}  // namespace tidal::test
