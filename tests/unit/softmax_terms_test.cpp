// The vector operations of a Scan layer, against double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/cpu/vector_ops.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(SoftmaxTerms, AgainstDoublePrecision) {
  Random random(1);
  for (const float bound : {1e-3f, 1.0f, 30.0f, 300.0f}) {
    for (const int count : {1, 2, 15, 16, 17, 31, 32, 33, 64, 1000}) {
      const std::vector<float> scores = random.uniform(count, bound);
      for (const float reference : {-7.5f, 0.0f, 100.0f}) {
        constexpr float kScale = 0.18033688f;
        std::vector<float> terms = scores;
        const float sum = softmax_terms(terms.data(), count, kScale, reference);
        double total = 0;
        for (int i = 0; i < count; ++i) {
          const double exponent = double{scores[i]} * kScale - reference, exact = std::exp2(exponent);
          total += terms[i];
          if (exponent < -125.001) {
            EXPECT_EQ(terms[i], 0) << exponent;
          } else if (exponent > -124.999) {
            // The exponent is rounded once, or the product before it as well.
            const double error = 3e-7 + (std::abs(exponent) + std::abs(double{scores[i]} * kScale)) * 0x1p-24;
            EXPECT_NEAR(terms[i], exact, exact * error) << exponent;
          }
        }
        EXPECT_NEAR(sum, total, total * count * 0x1p-24);
      }
    }
  }
}

TEST(SoftmaxTerms, NoNumbersAndOverflow) {
  for (const int count : {1, 16, 40}) {
    for (int at = 0; at < count; at += 13) {
      for (const float odd : {kNan, -kNan, kInfinity, 1000.0f, 129.5f}) {
        std::vector<float> terms(count, 1.0f);
        terms[at] = odd;
        EXPECT_FALSE(std::isfinite(softmax_terms(terms.data(), count, 1.0f, 0.0f))) << odd << " of " << count;
      }
      std::vector<float> terms(count, 1.0f);
      terms[at] = -kInfinity;
      EXPECT_EQ(softmax_terms(terms.data(), count, 1.0f, 1.0f), static_cast<float>(count - 1));
      EXPECT_EQ(terms[at], 0);
    }
    for (const float reference : {kNan, -kInfinity}) {
      std::vector<float> terms(count, 1.0f);
      EXPECT_FALSE(std::isfinite(softmax_terms(terms.data(), count, 1.0f, reference)));
    }
  }
}

TEST(WeightedSum, AgainstDoublePrecision) {
  Random random(2);
  for (const int count : {1, 3, 14}) {
    for (const int width : {1, 16, 37, 64}) {
      const int stride = width + 3;
      const std::vector<float> rows = random.uniform(count * stride, 1.0f), factors = random.uniform(count, 1.0f);
      std::vector<float> sums(width + 1, -7.0f);
      weighted_sum(rows.data(), stride, factors.data(), count, width, sums.data());
      EXPECT_EQ(sums[width], -7);
      for (int i = 0; i < width; ++i) {
        double exact = 0;
        for (int r = 0; r < count; ++r) exact += double{rows[r * stride + i]} * factors[r];
        EXPECT_NEAR(sums[i], exact, count * count * 0x1p-24);
      }
    }
  }
}

TEST(KeyScores, AgainstDoublePrecision) {
  Random random(3);
  for (const int dim : {16, 64, 80, 256}) {
    for (const int count : {1, 63}) {
      constexpr int kHeads = 3;
      const std::vector<float> q = random.uniform(kHeads * dim, 1.0f);
      std::vector<Bf16> keys(size_t{2} * dim * count);
      for (Bf16& key : keys) key = to_bf16(random.uniform(1.0f));
      const int stride = count + 2;
      std::vector<float> scores(kHeads * stride, -7.0f);
      std::vector<const std::byte*> rows;
      for (int r = 0; r < count; ++r) {
        rows.push_back(reinterpret_cast<const std::byte*>(keys.data() + int64_t{r} * 2 * dim));
      }
      key_scores(q.data(), kHeads, {KvType::Bf16, dim}, rows.data(), count, scores.data(), stride);
      for (int h = 0; h < kHeads; ++h) {
        for (int r = 0; r < count; ++r) {
          double exact = 0;
          for (int d = 0; d < dim; ++d) exact += double{q[h * dim + d]} * to_float(keys[int64_t{r} * 2 * dim + d]);
          EXPECT_NEAR(scores[h * stride + r], exact, dim * dim * 0x1p-24);
        }
        EXPECT_EQ(scores[h * stride + count], -7);
      }
    }
  }
}

}  // namespace
}  // namespace tidal
