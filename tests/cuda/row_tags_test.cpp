// What the row cache knows of its rows, on the host.
#include "backend/cuda/row_cache/row_tags.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "backend/sketch.h"

namespace tidal::test {
namespace {

using namespace cuda;

using Ways = std::array<RowTag, kWays>;

/// A set as the device changes it, one row after the other: the row's way, -1 where none is free for it.
int look_up(Ways& ways, RowTag row, uint32_t step) {
  const auto best = std::max_element(
      ways.begin(), ways.end(), [&](RowTag a, RowTag b) { return way_rank(a, row, step) < way_rank(b, row, step); });
  if (way_rank(*best, row, step) == kUsedWay) return -1;
  *best = stamped(row, step);
  return static_cast<int>(best - ways.begin());
}

TEST(RowTags, TellRowsApart) {
  std::set<RowTag> tags;
  const std::vector<uint32_t> generations = {1, 2, 3, 255, 256, 1u << 31, 0xffffffffu};
  for (const uint32_t generation : generations) {
    for (int offset = 0; offset < kBlockTokens; ++offset) {
      const RowTag row = row_tag(generation, offset);
      EXPECT_NE(row, 0u);
      EXPECT_EQ(row >> kRowBits, 0u);
      tags.insert(row);
      for (const uint32_t step : {0u, 1u, kStampMask, kStampMask + 5}) {
        EXPECT_EQ(way_rank(stamped(row, step), row, step + 1), kHoldingWay);
      }
    }
  }
  EXPECT_EQ(tags.size(), generations.size() * kBlockTokens);
}

TEST(RowTags, ANewGenerationIsAnotherRow) {
  Ways ways = {};
  EXPECT_EQ(look_up(ways, row_tag(7, 5), 1), 0);
  EXPECT_EQ(look_up(ways, row_tag(7, 5), 2), 0);
  EXPECT_EQ(way_rank(ways[0], row_tag(8, 5), 3), 1u);
  EXPECT_NE(look_up(ways, row_tag(8, 5), 3), 0);
}

TEST(RowTags, WhatWasUsedLongestAgoGivesWay) {
  // Steps that pass by the end of the stamp's bits.
  uint32_t step = kStampMask - 3;
  Ways ways = {};
  for (int i = 0; i < kWays; ++i) EXPECT_GE(look_up(ways, row_tag(1, i), step++), 0);
  EXPECT_EQ(std::count(ways.begin(), ways.end(), 0u), 0);
  const int second = look_up(ways, row_tag(1, 1), step++);
  const int first = look_up(ways, row_tag(1, 0), step++);
  // The third has not been used since.
  const int taken = look_up(ways, row_tag(2, 0), step);
  EXPECT_NE(taken, second);
  EXPECT_NE(taken, first);
  EXPECT_EQ(way_rank(ways[static_cast<size_t>(first)], row_tag(1, 0), step), kHoldingWay);
  for (int i = 3; i < kWays; ++i) {
    EXPECT_TRUE(std::any_of(ways.begin(), ways.end(), [&](RowTag way) {
      return way_rank(way, row_tag(1, i), step) == kHoldingWay;
    })) << i;
  }
}

TEST(RowTags, WhatThisStepUsesStays) {
  Ways ways = {};
  for (int i = 0; i < kWays; ++i) look_up(ways, row_tag(1, i), 1);
  for (int i = 0; i < kWays; ++i) EXPECT_GE(look_up(ways, row_tag(2, i), 2), 0);
  EXPECT_EQ(look_up(ways, row_tag(3, 0), 2), -1);
  EXPECT_EQ(look_up(ways, row_tag(1, 0), 2), -1);  // gone
  EXPECT_GE(look_up(ways, row_tag(2, 3), 2), 0);
  EXPECT_GE(look_up(ways, row_tag(3, 0), 3), 0);
}

TEST(RowTags, SetsAreFilledEvenly) {
  // Of rows thrown at random into sets, n in each on average, none of 257 gets n + 6 sqrt(n) or more, or fewer than
  // n - 6 sqrt(n), but once in a million times.
  constexpr uint32_t kSets = 257, kEach = 64;
  const auto check = [&](const char* what, auto row) {
    std::vector<int> counts(kSets);
    for (uint32_t i = 0; i < kSets * kEach; ++i) {
      const uint32_t set = row_set(row(i), kSets);
      ASSERT_LT(set, kSets);
      ++counts[set];
    }
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    EXPECT_GT(*least, 64 - 48) << what;
    EXPECT_LT(*most, 64 + 48) << what;
  };
  check("whole blocks", [](uint32_t i) { return row_tag(1 + i / kBlockTokens, static_cast<int>(i % kBlockTokens)); });
  check("first positions", [](uint32_t i) { return row_tag(1 + i, 0); });
  check("every 1024th block", [](uint32_t i) { return row_tag(1 + i / 8 * 1024, static_cast<int>(i % 8 * 8)); });
}

}  // namespace
}  // namespace tidal::test
