// Cached beginnings: what is found, what stays, what goes first.
#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "backend/backend.h"
#include "support/random.h"
#include "support/small_model.h"

namespace tidal {
namespace {

/// A pool of blocks of 2 KiB, and sequences that no model computed.
class PrefixCacheTest : public testing::Test {
 protected:
  static Hyperparameters shape() {
    Hyperparameters hp = test::small_shape(1);
    hp.kv_heads = 1;
    hp.head_dim = 8;
    return hp;
  }
  Sequence make(const std::vector<Token>& tokens, int clean) {
    Sequence sequence(pool);
    sequence.reserve(static_cast<int>(tokens.size()));
    sequence.append(std::span(tokens).first(clean), true);
    sequence.append(std::span(tokens).subspan(clean), false);
    return sequence;
  }
  Sequence make(const std::vector<Token>& tokens) { return make(tokens, static_cast<int>(tokens.size())); }
  int found(const std::vector<Token>& tokens, bool clean = false) {
    return cache.find(tokens, static_cast<int>(tokens.size()), clean, 0).length();
  }
  /// `count` tokens that begin with `first`, counted up.
  static std::vector<Token> counted(int first, int count) {
    std::vector<Token> tokens(count);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }

  std::unique_ptr<Backend> backend = make_backend("reference", 1);
  KvPool pool{*backend, shape(), 20000};
  PrefixCache cache{pool};
};

struct Known {
  std::vector<Token> tokens;
  int clean;
};

/// The longest beginning that one of the known texts shares, without a tree.
int longest(const std::vector<Known>& known, std::span<const Token> tokens, bool clean) {
  int best = 0;
  for (const Known& other : known) {
    const size_t most = std::min(tokens.size(), other.tokens.size());
    int common = 0;
    while (static_cast<size_t>(common) < most && tokens[common] == other.tokens[common]) ++common;
    best = std::max(best, clean ? std::min(common, other.clean) : common);
  }
  return best;
}

TEST_F(PrefixCacheTest, FindsTheLongestBeginningOfAll) {
  test::Random random(1);
  std::vector<Known> known;
  const auto text = [&] {
    std::vector<Token> tokens;
    if (!known.empty() && random.integer(0, 4) > 0) {
      const auto& other = known[random.integer(0, static_cast<int>(known.size()) - 1)].tokens;
      // Ends of blocks and the tokens beside them more often than others.
      int length = random.integer(0, static_cast<int>(other.size()));
      if (random.integer(0, 1) == 0) length = length / kBlockTokens * kBlockTokens + random.integer(-1, 1);
      tokens.assign(other.begin(), other.begin() + std::clamp(length, 0, static_cast<int>(other.size())));
    }
    for (int more = random.integer(0, 150); more > 0; --more) tokens.push_back(random.integer(0, 1));
    return tokens;
  };
  int inside = 0, shorter = 0;
  for (int round = 0; round < 600; ++round) {
    const std::vector<Token> tokens = text();
    const int most = random.integer(0, 3) ? static_cast<int>(tokens.size()) : random.integer(0, 200);
    const std::span<const Token> asked(tokens.data(), std::min<size_t>(most, tokens.size()));
    const int any = longest(known, asked, false), clean = longest(known, asked, true);
    const Sequence all = cache.find(tokens, most, false, 0), dense = cache.find(tokens, most, true, 0);
    ASSERT_EQ(all.length(), any) << round;
    ASSERT_EQ(dense.length(), clean) << round;
    EXPECT_EQ(dense.clean(), clean);
    EXPECT_LE(all.clean(), clean);
    EXPECT_TRUE(std::equal(all.tokens().begin(), all.tokens().end(), tokens.begin()));
    EXPECT_EQ(static_cast<int>(all.blocks().size()), blocks_for(any));
    inside += any % kBlockTokens > 0;
    shorter += clean < any;
    const int length = static_cast<int>(tokens.size());
    known.push_back({tokens, random.integer(0, 1) ? length : random.integer(0, length)});
    cache.keep(make(tokens, known.back().clean));
  }
  EXPECT_GT(inside, 20);  // all this shows little otherwise
  EXPECT_GT(shorter, 20);
  EXPECT_EQ(pool.blocks() - pool.free_blocks(), cache.blocks());
  cache.clear();
  EXPECT_EQ(cache.blocks(), 0);
  EXPECT_EQ(pool.free_blocks(), pool.blocks());
}

TEST_F(PrefixCacheTest, SharesBlocksInsteadOfCopyingThem) {
  const std::vector<Token> tokens = counted(0, 200);
  Sequence first = make(tokens);
  cache.keep(first);
  EXPECT_EQ(cache.blocks(), 4);
  EXPECT_EQ(pool.blocks() - pool.free_blocks(), 4);
  Sequence second = cache.find(tokens, 150, true, 512);
  EXPECT_EQ(second.length(), 150);
  EXPECT_TRUE(std::equal(second.blocks().begin(), second.blocks().end(), first.blocks().begin()));
  EXPECT_EQ(pool.references(first.blocks()[0]), 3);
  EXPECT_EQ(pool.references(first.blocks()[3]), 2);
  // It goes on within a block that others read.
  EXPECT_EQ(second.missing_blocks(150, 1), 1);
  second.reserve(1);
  EXPECT_NE(second.blocks()[2], first.blocks()[2]);
  EXPECT_EQ(pool.blocks() - pool.free_blocks(), 5);
  EXPECT_EQ(cache.reclaimable(), 0);
  first.truncate(0);
  EXPECT_EQ(cache.reclaimable(), 2);
}

TEST_F(PrefixCacheTest, KeepsNothingTwice) {
  cache.keep(make(counted(0, 100)));
  cache.keep(make(counted(0, 100)));
  EXPECT_EQ(cache.blocks(), 2);
  cache.keep(make(counted(0, 120)));  // the longer one has all of the shorter one
  EXPECT_EQ(cache.blocks(), 2);
  cache.keep(make(counted(0, 110)));
  EXPECT_EQ(cache.blocks(), 2);
  cache.keep(make(counted(0, 300)), 192);
  EXPECT_EQ(cache.blocks(), 3);
  EXPECT_EQ(found(counted(0, 300)), 192);
}

TEST_F(PrefixCacheTest, CleanContentStays) {
  const std::vector<Token> tokens = counted(0, 128);
  const Sequence polluted = make(tokens, 70), clean = make(tokens);
  const auto block = [&](int index) { return cache.find(tokens, 128, false, 0).blocks()[index]; };
  cache.keep(polluted);
  EXPECT_EQ(found(tokens), 128);
  EXPECT_EQ(found(tokens, true), 70);
  cache.keep(clean);
  EXPECT_EQ(found(tokens, true), 128);
  EXPECT_EQ(block(0), polluted.blocks()[0]) << "as clean as the other, which came first";
  EXPECT_EQ(block(1), clean.blocks()[1]);
  cache.keep(polluted);
  EXPECT_EQ(found(tokens, true), 128);
  EXPECT_EQ(cache.blocks(), 2);
  // A longer end that is polluted does not displace a shorter one that is clean.
  cache.keep(make(counted(1000, 30)));
  cache.keep(make(counted(1000, 50), 10));
  EXPECT_EQ(found(counted(1000, 60)), 50);
  EXPECT_EQ(found(counted(1000, 60), true), 30);
}

TEST_F(PrefixCacheTest, TheLeastRecentlyUsedLeavesGoFirst) {
  for (int text = 0; text < 4; ++text) cache.keep(make(counted(1000 * text, 128)));
  found(counted(0, 128));  // of texts 0 to 3, text 1 is now the oldest
  EXPECT_TRUE(cache.make_room(pool.free_blocks()));
  EXPECT_EQ(cache.blocks(), 8) << "there was room";
  EXPECT_TRUE(cache.make_room(pool.free_blocks() + 1));
  EXPECT_EQ(found(counted(1000, 128)), 64) << "its end, not its beginning";
  EXPECT_EQ(found(counted(2000, 128)), 128);
  EXPECT_TRUE(cache.make_room(pool.free_blocks() + 3));
  EXPECT_EQ(found(counted(3000, 128)), 0);
  EXPECT_EQ(found(counted(2000, 128)), 128);
  EXPECT_EQ(found(counted(1000, 128)), 64);
  EXPECT_EQ(found(counted(0, 128)), 64);
}

TEST_F(PrefixCacheTest, WhatOthersHoldGivesNoRoom) {
  Sequence held = make(counted(0, 192));
  cache.keep(held);
  cache.keep(make(counted(1000, 64)));
  const int free = pool.free_blocks();
  EXPECT_EQ(cache.reclaimable(), 1);
  EXPECT_FALSE(cache.make_room(free + 2));
  EXPECT_EQ(pool.free_blocks(), free + 1);
  EXPECT_EQ(cache.blocks(), 3) << "giving these up would free nothing";
  held.truncate(0);
  EXPECT_TRUE(cache.make_room(free + 4));
  EXPECT_EQ(cache.blocks(), 0);
}

TEST_F(PrefixCacheTest, BlocksAboveWhatOthersHoldCanBeHad) {
  cache.keep(make(counted(0, 64)));
  const Sequence held = make(counted(0, 192));  // its first block is its own, the cache's is another
  cache.keep(held);
  EXPECT_EQ(cache.blocks(), 3);
  EXPECT_EQ(cache.reclaimable(), 1);
  EXPECT_TRUE(cache.make_room(pool.free_blocks() + 1));
  EXPECT_EQ(cache.blocks(), 0);
}

TEST_F(PrefixCacheTest, AMillionTokensDeep) {
  const std::vector<Token> tokens = counted(0, 1 << 20);
  cache.keep(make(tokens));
  EXPECT_EQ(cache.blocks(), 1 << 14);
  EXPECT_EQ(found(tokens), 1 << 20);
  EXPECT_TRUE(cache.make_room(10000));
  EXPECT_EQ(found(tokens), 10000 * kBlockTokens);
}

}  // namespace
}  // namespace tidal
