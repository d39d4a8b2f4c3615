// Measures of next-token distributions against their formulas.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/backend.h"
#include "eval/next_token.h"
#include "support/error.h"
#include "support/random.h"

namespace tidal::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
using Logits = std::vector<float>;

/// Logits of these probabilities, shifted by any amount.
Logits logits_of(const std::vector<double>& probabilities, double shift = 0) {
  Logits logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + shift));
  return logits;
}

TEST(NextToken, DivergenceIsTheSumOfItsDefinition) {
  const std::vector<double> p = {0.5, 0.25, 0.125, 0.125}, q = {0.1, 0.2, 0.3, 0.4};
  double expected = 0;
  for (size_t i = 0; i < p.size(); ++i) expected += p[i] * std::log(p[i] / q[i]);
  // A float logit near 50 is exact to 2^-19; the sum of four such errors weighted by probabilities stays below twice
  // it.
  EXPECT_NEAR(kl_divergence(logits_of(p), logits_of(q)), expected, 1e-6);
  EXPECT_NEAR(kl_divergence(logits_of(p, 50), logits_of(q, -30)), expected, 2 * 0x1p-18);
  double reverse = 0;
  for (size_t i = 0; i < p.size(); ++i) reverse += q[i] * std::log(q[i] / p[i]);
  EXPECT_NEAR(kl_divergence(logits_of(q), logits_of(p)), reverse, 1e-6);
  EXPECT_GT(std::abs(expected - reverse), 0.01) << "the test must tell the two apart";
}

TEST(NextToken, DivergenceOfTheSameIsZeroAndOfOthersPositive) {
  Random random;
  NextToken reference;
  for (const int vocab : {1, 2, 1000}) {
    const Logits logits = random.uniform(vocab, 20);
    reference.set(logits);
    EXPECT_EQ(reference.kl_divergence(logits), 0);
    for (int i = 0; i < 20 && vocab > 1; ++i) EXPECT_GT(reference.kl_divergence(random.uniform(vocab, 20)), 0);
  }
}

TEST(NextToken, DivergenceAtTheEdges) {
  EXPECT_EQ(kl_divergence(Logits{0, -kInfinity}, Logits{0, -kInfinity}), 0) << "ruled out by both";
  EXPECT_NEAR(kl_divergence(Logits{0, -kInfinity}, Logits{0, 0}), std::log(2.0), 1e-12);
  EXPECT_EQ(kl_divergence(Logits{0, 0}, Logits{0, -kInfinity}), kInfinity);
  EXPECT_TRUE(std::isnan(kl_divergence(Logits{0, 0}, Logits{0, kNaN})));
  EXPECT_TRUE(std::isnan(kl_divergence(Logits{kNaN, 0}, Logits{0, 0})));
  EXPECT_NEAR(kl_divergence(Logits{1000, 0}, Logits{0, 1000}), 1000, 1e-9) << "no overflow";
  EXPECT_EQ(error_of([] { kl_divergence(Logits{0, 1}, Logits{0}); }), "logits: 1 of them cannot be compared with 2");
}

TEST(NextToken, LikelihoodIsThatOfSoftmax) {
  const std::vector<double> p = {0.7, 0.2, 0.1};
  NextToken reference;
  reference.set(logits_of(p, 3));
  for (Token token = 0; token < 3; ++token) {
    EXPECT_NEAR(negative_log_likelihood(logits_of(p), token), -std::log(p[token]), 1e-6);
    EXPECT_NEAR(reference.negative_log_likelihood(token), -std::log(p[token]), 1e-6);
  }
  EXPECT_NEAR(log_sum_exp(Logits(1000, 2.0f)), 2 + std::log(1000.0), 1e-12);
  EXPECT_EQ(log_sum_exp(Logits{}), -kInfinity);
  EXPECT_EQ(negative_log_likelihood(Logits{0, -kInfinity}, 1), kInfinity);
  for (const Token token : {-1, 3}) {
    EXPECT_THAT(error_of([&] { negative_log_likelihood(logits_of(p), token); }), testing::HasSubstr("vocabulary of 3"));
    EXPECT_THAT(error_of([&] { (void)reference.negative_log_likelihood(token); }), testing::HasSubstr("token"));
  }
}

TEST(NextToken, BestIsTheFirstOfTheHighest) {
  EXPECT_EQ(argmax(Logits{1, 3, 3, 2}), 1);
  EXPECT_EQ(argmax(Logits{kNaN, 1, kNaN, 2, kNaN}), 3);
  EXPECT_EQ(argmax(Logits{kNaN, -kInfinity}), 1);
  EXPECT_EQ(argmax(Logits{kNaN, kNaN}), 0);
  EXPECT_EQ(argmax(Logits{-kInfinity}), 0);
  EXPECT_EQ(error_of([] { argmax(Logits{}); }), "logits: there are none, expected one for every token");
  NextToken reference;
  reference.set(Logits{0, 5, 1});
  EXPECT_EQ(reference.best(), 1);
}

TEST(NextToken, LargeVocabulariesAreAddedUpTheSameByAnyNumberOfThreads) {
  for (const size_t vocab : {8193u, 50001u}) {
    std::vector<float> full(vocab), logits(vocab);
    test::Random random(vocab);
    for (size_t i = 0; i < vocab; ++i) logits[i] = (full[i] = random.normal(4.0f)) + random.normal(0.3f);
    // By the definition, in long double.
    long double p_sum = 0, q_sum = 0, kl = 0;
    for (size_t i = 0; i < vocab; ++i) {
      p_sum += std::exp(static_cast<long double>(full[i]));
      q_sum += std::exp(static_cast<long double>(logits[i]));
    }
    for (size_t i = 0; i < vocab; ++i) {
      const long double difference = static_cast<long double>(full[i]) - static_cast<long double>(logits[i]);
      kl += std::exp(static_cast<long double>(full[i])) / p_sum * (difference - std::log(p_sum) + std::log(q_sum));
    }
    std::vector<double> found;
    for (const int threads : {1, 2, 3, 5}) {
      const auto backend = make_backend("cpu", threads);  // sets how many there are
      found.push_back(kl_divergence(full, logits));
      EXPECT_NEAR(log_sum_exp(full), static_cast<double>(std::log(p_sum)), 1e-12);
    }
    EXPECT_NEAR(found[0], static_cast<double>(kl), 1e-12);
    EXPECT_THAT(found, testing::Each(found[0]));
  }
}

TEST(MeanError, IsThatOfTheSample) {
  MeanError none;
  EXPECT_EQ(none.count(), 0);
  EXPECT_EQ(none.mean(), 0);
  EXPECT_EQ(none.error(), 0);
  MeanError one;
  one.add(5);
  EXPECT_EQ(one.mean(), 5);
  EXPECT_EQ(one.error(), 0);
  // 2, 4, 4, 4, 5, 5, 7, 9 around a mean of 5: squares add up to 32.
  for (const double offset : {0.0, 1e9}) {
    MeanError values;
    for (const double value : {2, 4, 4, 4, 5, 5, 7, 9}) values.add(value + offset);
    EXPECT_EQ(values.count(), 8);
    EXPECT_NEAR(values.mean(), 5 + offset, 1e-6);
    EXPECT_NEAR(values.error(), std::sqrt(32.0 / 7 / 8), 1e-6);
  }
}

TEST(MeanError, OfAShare) {
  EXPECT_EQ(share_error(0, 0), 0);
  EXPECT_NEAR(share_error(0.5, 98), 0.05, 1e-12);
  EXPECT_NEAR(share_error(1, 20), std::sqrt(21.0 / 22 * (1.0 / 22) / 22), 1e-12);
  EXPECT_NEAR(share_error(0, 20), share_error(1, 20), 1e-12);
  EXPECT_GT(share_error(1, 20), 0.03) << "20 of 20 is no certainty";
}

}  // namespace
}  // namespace tidal::test
