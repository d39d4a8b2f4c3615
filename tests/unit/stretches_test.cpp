// How a text was cut into chunks, and window blocks that are given up where they run out.
#include "engine/stretches.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "engine/window_pool.h"
#include "support/error.h"

namespace tidal {
namespace {

constexpr int kFew = 8;  // rows of a decode step's arithmetic

class StretchesTest : public testing::Test {
 protected:
  StretchesTest() { std::iota(text.begin(), text.end(), 0); }

  std::span<const Token> tokens(int first, int end) const {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(end - first));
  }
  void record(int first, int end) { stretches.record(first, tokens(first, end), kFew); }
  void truncate(int length, int before) { stretches.truncate(length, tokens(0, before)); }
  std::vector<Token> rest(int position, int most) const {
    const auto rest = stretches.again(position, most, kFew).rest;
    return {rest.begin(), rest.end()};
  }

  std::vector<Token> text = std::vector<Token>(1000);
  Stretches stretches;
};

TEST_F(StretchesTest, ChunksAreRunAgainAsTheyWere) {
  record(0, 100);
  record(100, 150);
  EXPECT_EQ(stretches.begin(0), 0);
  EXPECT_EQ(stretches.begin(99), 0);
  EXPECT_EQ(stretches.begin(100), 100);
  EXPECT_EQ(stretches.begin(149), 100);
  EXPECT_EQ(stretches.begin(150), 150) << "nothing is known of what comes next";
  EXPECT_EQ(stretches.again(0, 1000, kFew).rows, 100);
  EXPECT_EQ(stretches.again(100, 1000, kFew).rows, 50);
  EXPECT_EQ(stretches.again(100, 20, kFew).rows, 20);
  EXPECT_EQ(stretches.again(150, 20, kFew).rows, 20);
}

TEST_F(StretchesTest, ShortChunksHaveOneArithmetic) {
  record(0, 100);
  for (int i = 100; i < 130; ++i) record(i, i + 1);
  record(130, 130 + kFew);
  EXPECT_EQ(stretches.begin(117), 117);
  EXPECT_EQ(stretches.again(117, 1000, kFew).rows, kFew);
  EXPECT_EQ(stretches.again(135, 1000, kFew).rows, 3);
  truncate(120, 138);
  EXPECT_EQ(stretches.again(117, 1000, kFew).rows, 3);
  EXPECT_TRUE(rest(117, 1000).empty());
  EXPECT_EQ(stretches.end(120), 120);
}

TEST_F(StretchesTest, AChunkThatWasCutRemembersItsOtherTokens) {
  record(0, 100);
  record(100, 200);
  truncate(160, 200);
  EXPECT_EQ(stretches.again(100, 1000, kFew).rows, 60);
  EXPECT_EQ(rest(100, 1000), std::vector<Token>(text.begin() + 160, text.begin() + 200));
  EXPECT_EQ(stretches.end(160), 200);
  // In pieces it is not the same chunk.
  EXPECT_TRUE(rest(100, 59).empty());
  // Cut once more, and after other tokens have come.
  std::iota(text.begin() + 160, text.end(), 5000);
  record(160, 300);
  EXPECT_EQ(rest(100, 60).size(), 40u);
  EXPECT_EQ(rest(100, 60)[0], 160);
  truncate(130, 300);
  std::vector<Token> expected(70);
  std::iota(expected.begin(), expected.end(), 130);
  EXPECT_EQ(rest(100, 1000), expected);
  truncate(100, 130);
  EXPECT_EQ(stretches.end(100), 100);
  EXPECT_EQ(stretches.begin(100), 100);
}

TEST_F(StretchesTest, WhatIsComputedAgainFromTheMiddleCutsTheChunkBefore) {
  record(0, 100);
  record(50, 130);
  EXPECT_EQ(stretches.begin(49), 0);
  EXPECT_EQ(rest(0, 50), std::vector<Token>(text.begin() + 50, text.begin() + 100));
  EXPECT_EQ(stretches.begin(70), 50);
  record(0, 50);  // again
  EXPECT_EQ(stretches.begin(70), 50);
}

TEST_F(StretchesTest, BetweenThemNothingIsKnown) {
  record(200, 300);
  EXPECT_EQ(stretches.begin(120), 120);
  EXPECT_EQ(stretches.again(120, 500, kFew).rows, 80) << "up to where something is";
}

TEST(WindowPoolTest, TheFirstBlockIsNobodys) {
  WindowPool none(0, 0), pool(4, 100);
  EXPECT_FALSE(none);
  ASSERT_TRUE(pool);
  EXPECT_EQ(pool.free_blocks(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_NE(pool.take(), kNoBlock);
  EXPECT_EQ(test::error_of([&] { pool.take(); }), "KV cache: all 4 blocks of layers with a window are in use");
}

TEST(WindowPoolTest, WhoHoldsMoreThanItNeedsIsAskedInOrder) {
  WindowPool pool(6, 100);
  std::vector<BlockId> saved, needed;
  for (int i = 0; i < 3; ++i) saved.push_back(pool.take());
  for (int i = 0; i < 2; ++i) needed.push_back(pool.take());
  pool.add_reference(saved[0]);  // shared: given up by both
  std::vector<BlockId> shared = {saved[0]};
  const auto give = [&](std::vector<BlockId>& blocks) {
    if (blocks.empty()) return false;
    pool.release(blocks.back());
    blocks.pop_back();
    return true;
  };
  const int first = 0, second = 0, third = 0;
  pool.on_shortage(&first, [&](WindowPool::Shortage) {
    // Like the cache: nothing that others hold, too.
    return !shared.empty() && pool.references(shared.back()) == 1 && give(shared);
  });
  pool.on_shortage(
      &second, [&](WindowPool::Shortage shortage) { return shortage == WindowPool::Shortage::All && give(needed); });
  pool.on_shortage(&third, [&](WindowPool::Shortage) { return give(saved); });
  pool.make_room(3);
  EXPECT_EQ(pool.free_blocks(), 3);
  EXPECT_EQ(needed.size(), 2u) << "what is saved goes first";
  pool.make_room(4);
  EXPECT_EQ(needed.size(), 1u);
  pool.on_shortage(&second, {});
  pool.make_room(5);
  EXPECT_EQ(needed.size(), 1u) << "it is asked no more";
}

}  // namespace
}  // namespace tidal
