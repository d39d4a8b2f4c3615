// Exact top-k against a plain sort.
#include "backend/cpu/top_k.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

/// The rules of top_k.h by std::sort.
std::vector<int32_t> sorted_top_k(const std::vector<float>& scores, int first, int count, int k) {
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), first);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
    if (!std::isnan(x) && x != y) return x > y;
    return a < b;
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

void expect_sorted(const std::vector<float>& scores, int first, int count, int k) {
  std::vector<int32_t> positions(k + 1, -7);
  top_k(scores.data(), first, count, k, positions.data());
  EXPECT_EQ(positions.back(), -7) << "wrote beyond k";
  positions.pop_back();
  EXPECT_EQ(positions, sorted_top_k(scores, first, count, k)) << "count " << count << ", k " << k;
}

void expect_sorted_for_every_k(const std::vector<float>& scores) {
  const int count = static_cast<int>(scores.size());
  for (int k = 0; k <= count; ++k) expect_sorted(scores, 0, count, k);
}

TEST(TopK, AllEqualTakesTheLowest) {
  for (const float value : {0.0f, -0.0f, 1.0f, -3.5f, kInfinity, -kInfinity, kNan}) {
    expect_sorted_for_every_k(std::vector<float>(100, value));
  }
}

TEST(TopK, NanRanksBelowMinusInfinity) {
  expect_sorted_for_every_k({kNan, -kInfinity, kNan, -kInfinity, -std::numeric_limits<float>::max()});
  // NaN of either sign and any payload is the same nothing.
  const float odd_nan = std::bit_cast<float>(0xffffffffu), small_nan = std::bit_cast<float>(0x7f800001u);
  expect_sorted_for_every_k({odd_nan, 0.0f, small_nan, -kInfinity, -kNan, 1.0f});
}

TEST(TopK, ZerosOfBothSignsAreEqual) {
  expect_sorted_for_every_k({-0.0f, 0.0f, -0.0f, 0.0f, 1e-45f, -1e-45f, 0.0f, -0.0f});
}

TEST(TopK, ExtremesAndDenormals) {
  const float least = std::numeric_limits<float>::denorm_min(), small = std::numeric_limits<float>::min();
  const float large = std::numeric_limits<float>::max();
  expect_sorted_for_every_k({least, 2 * least, -least, small, -small, small - least, large, -large, kInfinity,
                             -kInfinity, 1.0f, std::nextafter(1.0f, 2.0f), std::nextafter(1.0f, 0.0f), 0.0f});
}

TEST(TopK, NeighboursThatDifferInOneBit) {
  // Every digit of the radix search must take part: values a single bit apart in each position of the pattern.
  std::vector<float> scores;
  for (int bit = 0; bit < 32; ++bit) {
    scores.push_back(std::bit_cast<float>(0x3f800000u ^ (1u << bit)));
    scores.push_back(std::bit_cast<float>(0xbf800000u ^ (1u << bit)));
  }
  expect_sorted_for_every_k(scores);
}

TEST(TopK, NothingAndEverything) {
  const std::vector<float> scores = {3, 1, 2};
  expect_sorted(scores, 0, 3, 0);
  expect_sorted(scores, 0, 3, 3);
  expect_sorted(scores, 1, 0, 0);
}

TEST(TopK, RangeInside) {
  Random random(1);
  const std::vector<float> scores = random.uniform(500, 1.0f);
  for (const int first : {0, 1, 63, 400}) {
    for (const int k : {1, 17, 90}) expect_sorted(scores, first, 97, k);
  }
}

// Long enough that most scores are left out by groups: sorted ones share few groups, and ends of every length remain.
TEST(TopK, FewOfMany) {
  Random random(3);
  for (const int count : {1000, 4096, 16384, 16399, 40001}) {
    std::vector<float> scores = random.uniform(count, 1.0f);
    for (const int k : {1, 2, 63, 188, 500}) {
      expect_sorted(scores, 0, count, k);
      expect_sorted(scores, 3, count - 5, k);
    }
    std::vector<float> sorted = scores;
    std::sort(sorted.begin(), sorted.end());
    for (const int k : {1, 63, 500}) expect_sorted(sorted, 0, count, k);
    std::reverse(sorted.begin(), sorted.end());
    for (const int k : {1, 63, 500}) expect_sorted(sorted, 0, count, k);
    // Scores that differ in their lowest bits alone: the bound is rough, the choice is not.
    for (float& score : sorted)
      score = std::bit_cast<float>(0x3f800000u + static_cast<uint32_t>(random.integer(0, 99)));
    for (const int k : {1, 63, 500}) expect_sorted(sorted, 0, count, k);
  }
}

TEST(TopK, FewNumbersAmongMany) {
  Random random(4);
  for (const float other : {kNan, -kInfinity, 0.0f}) {
    for (const int count : {2048, 2055, 20000}) {
      std::vector<float> scores(count, other);
      for (int i = 0; i < 100; ++i) scores[random.integer(0, count - 1)] = random.uniform(1.0f);
      for (const int k : {1, 50, 150}) expect_sorted(scores, 0, count, k);
    }
  }
}

TEST(TopK, RandomPatterns) {
  Random random(2);
  for (int round = 0; round < 300; ++round) {
    const int count = random.integer(1, 3000);
    const int kinds = random.integer(1, 5);
    std::vector<float> scores(count);
    for (float& score : scores) {
      switch (random.integer(0, kinds)) {
        case 0: score = random.uniform(1.0f); break;
        case 1: score = static_cast<float>(random.integer(-3, 3)); break;
        case 2: score = std::bit_cast<float>(static_cast<uint32_t>(random.integer(0, 0x7fffffff)) * 2u); break;
        case 3: score = random.integer(0, 1) ? kInfinity : -kInfinity; break;
        case 4: score = kNan; break;
        default: score = random.uniform(1e-40f); break;
      }
    }
    expect_sorted(scores, 0, count, random.integer(0, count));
  }
}

}  // namespace
}  // namespace tidal
