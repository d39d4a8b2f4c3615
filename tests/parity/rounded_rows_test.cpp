// Softmax weights and gated units that are rounded to bf16 as they are computed, against double.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/rounded_rows.h"
#include "parity/bounds.h"
#include "support/random.h"

namespace tidal::parity {
namespace {

using test::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Half the distance of two numbers, relative: of 24 and of 8 significant bits.
constexpr double kFloat = 0x1p-24, kBf16 = 0x1p-8;
// Around whole vectors and pairs of them.
constexpr int kCounts[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 255, 256};

class RoundedRows : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_rounded_rows()) GTEST_SKIP() << "this processor has no AVX512-BF16";
  }
  Random random_{31};
};

/// What one step leaves in place of its scores; the numbers behind `padded` must stay.
std::vector<float> step(std::vector<float> scores, int padded, float scale, float& maximum, float& sum, float& shrink) {
  const int count = static_cast<int>(scores.size());
  scores.resize(padded + 1, std::nanf(""));
  scores[padded] = 7.0f;
  auto* to = reinterpret_cast<Bf16*>(scores.data());
  shrink = softmax_step_to_bf16(scores.data(), count, padded, scale, maximum, sum, to);
  EXPECT_EQ(scores[padded], 7.0f) << "wrote beyond the end";
  std::vector<float> weights;
  for (int i = 0; i < padded; ++i) weights.push_back(to_float(to[i]));
  return weights;
}

TEST_F(RoundedRows, SoftmaxSteps) {
  for (const int count : kCounts) {
    const int padded = (count + 31) / 32 * 32 + 32 * random_.integer(0, 1);
    float maximum = -kInfinity, sum = 0, shrink = 0;
    double expected_sum = 0, top = -std::numeric_limits<double>::infinity();
    for (int round = 0; round < 4; ++round) {
      const std::vector<float> scores = random_.uniform(count, 40.0f);
      const double before = top;
      for (const float score : scores) top = std::max(top, score * 0.5);
      const std::vector<float> weights = step(scores, padded, 0.5f, maximum, sum, shrink);
      EXPECT_EQ(maximum, static_cast<float>(top));
      EXPECT_NEAR(shrink, round == 0 ? 0.0 : std::exp(before - top), 4 * kFloat);
      expected_sum *= round == 0 ? 0.0 : std::exp(before - top);
      // Of 2^x: the polynomial, and the exponent's own rounding. Factor, product and difference round once each, none
      // of the terms is above 20 log2(e) * 2 = 58.
      const double error = 0x1p-18 + 3 * 58 * kFloat * std::log(2.0);
      for (int i = 0; i < padded; ++i) {
        const double weight = i < count ? std::exp(scores[i] * 0.5 - top) : 0.0;
        EXPECT_NEAR(weights[i], weight, weight * (kBf16 + 2 * error)) << i << " of " << count;
        expected_sum += weight;
      }
      EXPECT_NEAR(sum, expected_sum, expected_sum * (4 * error + (4 * count + 24) * kFloat));
    }
  }
}

TEST_F(RoundedRows, SoftmaxOfWhatIsNotFinite) {
  for (const int count : {3, 40}) {
    float maximum = -kInfinity, sum = 0, shrink = 1;
    // Nothing above -infinity yet: no weight, and no NaN.
    for (const float weight : step(std::vector<float>(count, -kInfinity), 64, 1.0f, maximum, sum, shrink)) {
      EXPECT_EQ(weight, 0.0f);
    }
    EXPECT_EQ(maximum, -kInfinity);
    EXPECT_EQ(sum, 0.0f);
    EXPECT_EQ(shrink, 0.0f);

    std::vector<float> scores(count, 2.0f);
    scores[1] = -kInfinity;
    scores[2] = -3e38f;
    std::vector<float> weights = step(scores, 64, 1.0f, maximum, sum, shrink);
    EXPECT_EQ(weights[0], 1.0f);
    EXPECT_EQ(weights[1], 0.0f);
    EXPECT_EQ(weights[2], 0.0f);
    EXPECT_EQ(maximum, 2.0f);

    scores[count - 1] = std::nanf("");
    weights = step(scores, 64, 1.0f, maximum, sum, shrink);
    EXPECT_EQ(weights[0], 1.0f);
    EXPECT_TRUE(std::isnan(weights[count - 1])) << "a NaN score must not vanish";
    EXPECT_TRUE(std::isnan(sum));
    EXPECT_EQ(maximum, 2.0f);
  }
}

TEST_F(RoundedRows, Activate) {
  for (const Activation activation : kActivations) {
    for (const int count : kCounts) {
      const std::vector<float> gate = random_.uniform(count, 20.0f), up = random_.uniform(count, 2.0f);
      std::vector<Bf16> got(count + 1, Bf16{77});
      activate_to_bf16(activation, gate.data(), up.data(), count, got.data());
      for (int i = 0; i < count; ++i) {
        const auto [g, u] = clamped(activation, gate[i], up[i]);
        const double exponent = activation_exponent(activation, g);
        const double expected = g / (1 + std::exp(-exponent)) * u;
        // Four operations round the exponent; what is smaller than any float becomes 0.
        const double relative = kBf16 + 2 * 0x1p-13 + 4 * 0x1p-24 * std::abs(exponent);
        EXPECT_NEAR(to_float(got[i]), expected, std::abs(expected) * relative + 40 * 0x1p-126) << gate[i];
      }
      EXPECT_EQ(got[count].bits, 77) << "wrote beyond the end";
    }
  }
  const float gate[] = {kInfinity, -200.0f, 200.0f, std::nanf(""), 0.0f, -0.0f, 1.0f};
  const float up[] = {1, 1, 1, 1, 1, 1, std::nanf("")};
  Bf16 got[7];
  for (const Activation activation : kActivations) {
    activate_to_bf16(activation, gate, up, 7, got);
    const bool bounded = activation == Activation::ClampedSwiGlu;
    EXPECT_EQ(to_float(got[0]), bounded ? 14.0f : kInfinity);
    EXPECT_EQ(to_float(got[1]), 0.0f);
    EXPECT_EQ(to_float(got[2]), bounded ? 14.0f : 200.0f);
    EXPECT_TRUE(std::isnan(to_float(got[3])));
    EXPECT_EQ(to_float(got[4]), 0.0f);
    EXPECT_EQ(to_float(got[5]), 0.0f);
    EXPECT_TRUE(std::isnan(to_float(got[6])));
  }
}

}  // namespace
}  // namespace tidal::parity
