// The block pool and sequences over it, without a model.
#include "engine/kv_pool.h"

#include <gtest/gtest.h>

#include <limits>

#include "engine/sequence.h"
#include "support/backends.h"
#include "support/error.h"
#include "support/small_model.h"

namespace tidal {
namespace {

using test::error_of;

class Pool : public test::BackendTest<std::string> {
 protected:
  /// Writes `value` all over a block, or reads one element of the first and last layer.
  void fill(KvPool& pool, BlockId block, float value) {
    for (const KvLayer& layer : pool.layers()) {
      const std::vector<Bf16> values(static_cast<size_t>(layer.tile_bytes()) / sizeof(Bf16) * layer.kv_heads,
                                     to_bf16(value));
      backend_->write(layer.tile(block, 0), reinterpret_cast<const std::byte*>(values.data()),
                      values.size() * sizeof(Bf16));
    }
  }
  bool holds(KvPool& pool, BlockId block, float value) {
    for (const KvLayer& layer : pool.layers()) {
      std::vector<Bf16> values(static_cast<size_t>(layer.tile_bytes()) / sizeof(Bf16) * layer.kv_heads);
      backend_->read(reinterpret_cast<std::byte*>(values.data()), layer.tile(block, 0), values.size() * sizeof(Bf16));
      for (const Bf16 element : values) {
        if (to_float(element) != value) return false;
      }
    }
    return true;
  }
  static std::vector<Token> tokens(int count) { return std::vector<Token>(count, 1); }
  static void append(Sequence& sequence, int count, bool dense = true) {
    sequence.reserve(count);
    sequence.append(tokens(count), dense);
  }

  void SetUp() override {
    BackendTest::SetUp();
    if (!IsSkipped()) backend_ = make_backend(GetParam(), 1);
  }

  std::unique_ptr<Backend> backend_;
  Hyperparameters hp_ = test::small_shape(3);
};

INSTANTIATE_TEST_SUITE_P(All, Pool, testing::ValuesIn(test::kBackends), [](const auto& info) { return info.param; });

TEST_P(Pool, HandsOutAscendingBlocksOnce) {
  KvPool pool(*backend_, hp_, 3);
  EXPECT_EQ(pool.blocks(), 3);
  EXPECT_EQ(pool.bytes(), 3 * 64 * hp_.kv_bytes_per_token());
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 2);
  EXPECT_EQ(pool.free_blocks(), 0);
  EXPECT_EQ(error_of([&] { pool.take(); }), "KV cache: all 3 blocks of 64 tokens are in use");
  pool.release(1);
  EXPECT_EQ(pool.take(), 1);
}

TEST_P(Pool, CountsReferences) {
  KvPool pool(*backend_, hp_, 2);
  const BlockId block = pool.take();
  pool.add_reference(block);
  EXPECT_EQ(pool.references(block), 2);
  pool.release(block);
  EXPECT_EQ(pool.free_blocks(), 1);
  pool.release(block);
  EXPECT_EQ(pool.references(block), 0);
  EXPECT_EQ(pool.free_blocks(), 2);
}

TEST_P(Pool, CopiesOneBlockInAllLayers) {
  KvPool pool(*backend_, hp_, 3);
  for (BlockId block = 0; block < 3; ++block) fill(pool, block, static_cast<float>(block + 1));
  pool.copy(2, 0);
  EXPECT_TRUE(holds(pool, 0, 1));
  EXPECT_TRUE(holds(pool, 1, 2));
  EXPECT_TRUE(holds(pool, 2, 1));
}

TEST_P(Pool, SequencesGiveBackWhatTheyTook) {
  KvPool pool(*backend_, hp_, 8);
  {
    Sequence a(pool), b(pool);
    append(a, 1);
    append(b, 130);
    EXPECT_EQ(pool.free_blocks(), 8 - 1 - 3);
    Sequence c = std::move(b);
    EXPECT_EQ(c.length(), 130);
    EXPECT_EQ(b.length(), 0);
    EXPECT_EQ(pool.free_blocks(), 4);
    a = std::move(c);
    EXPECT_EQ(a.length(), 130);
    EXPECT_EQ(pool.free_blocks(), 5);
    Sequence& self = a;
    a = std::move(self);
    EXPECT_EQ(a.length(), 130);
  }
  EXPECT_EQ(pool.free_blocks(), 8);
}

TEST_P(Pool, ForksShareUntilOneWrites) {
  KvPool pool(*backend_, hp_, 8);
  {
    Sequence a(pool);
    append(a, 100);
    fill(pool, a.blocks()[0], 1);
    fill(pool, a.blocks()[1], 2);
    Sequence b = a.fork();
    EXPECT_EQ(pool.free_blocks(), 6) << "a fork takes nothing";
    append(b, 1);
    EXPECT_EQ(pool.free_blocks(), 5) << "only the block that b writes to is copied";
    EXPECT_EQ(a.blocks()[0], b.blocks()[0]);
    EXPECT_NE(a.blocks()[1], b.blocks()[1]);
    EXPECT_TRUE(holds(pool, b.blocks()[1], 2));
    EXPECT_EQ(pool.references(a.blocks()[0]), 2);
    EXPECT_EQ(pool.references(a.blocks()[1]), 1);
    append(a, 1);
    EXPECT_EQ(pool.free_blocks(), 5) << "a is alone in its block now";
    Sequence c = a.fork();
    c.truncate(10);
    EXPECT_EQ(pool.references(a.blocks()[0]), 3);
    EXPECT_EQ(pool.references(a.blocks()[1]), 1);
    append(c, 1);
    EXPECT_NE(c.blocks()[0], a.blocks()[0]) << "truncated into a shared block, which others still read";
    EXPECT_TRUE(holds(pool, c.blocks()[0], 1));
  }
  EXPECT_EQ(pool.free_blocks(), 8);
}

TEST_P(Pool, ForkAtABlockEdgeCopiesNothing) {
  KvPool pool(*backend_, hp_, 4);
  Sequence a(pool);
  append(a, 128);
  Sequence b = a.fork();
  append(b, 1);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(a.blocks()[1], b.blocks()[1]);
}

TEST_P(Pool, ForkDoesNotShareWhatIsOnlyReserved) {
  KvPool pool(*backend_, hp_, 4);
  Sequence a(pool);
  append(a, 64);
  a.reserve(1);
  EXPECT_EQ(a.blocks().size(), 2u);
  const Sequence b = a.fork();
  EXPECT_EQ(b.blocks().size(), 1u);
  EXPECT_EQ(pool.references(a.blocks()[1]), 1);
  a.release_reserved();
  EXPECT_EQ(a.blocks().size(), 1u);
  EXPECT_EQ(pool.free_blocks(), 3);
}

TEST_P(Pool, ExhaustionChangesNothing) {
  KvPool pool(*backend_, hp_, 3);
  Sequence a(pool);
  append(a, 100);
  Sequence b = a.fork();
  const std::vector<BlockId> before(b.blocks().begin(), b.blocks().end());
  // 28 tokens fit in a copy of the shared block, one more needs a second block.
  EXPECT_EQ(error_of([&] { b.reserve(29); }),
            "KV cache: 29 more tokens need 2 blocks of 64 tokens, but only 1 of 3 are free");
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), b.blocks().begin(), b.blocks().end()));
  append(b, 28);
  EXPECT_EQ(b.length(), 128);
  EXPECT_EQ(a.length(), 100);
}

TEST_P(Pool, Truncate) {
  KvPool pool(*backend_, hp_, 4);
  Sequence a(pool);
  append(a, 200);
  EXPECT_EQ(error_of([&] { a.truncate(201); }), "sequence: cannot truncate to 201 tokens, it has 200");
  EXPECT_EQ(error_of([&] { a.truncate(-1); }), "sequence: cannot truncate to -1 tokens, it has 200");
  a.truncate(200);
  EXPECT_EQ(pool.free_blocks(), 0);
  a.truncate(129);
  EXPECT_EQ(pool.free_blocks(), 1);
  a.truncate(128);
  EXPECT_EQ(pool.free_blocks(), 2);
  a.truncate(0);
  EXPECT_EQ(pool.free_blocks(), 4);
  EXPECT_EQ(a.length(), 0);
}

TEST_P(Pool, CleanFollowsDenseTokens) {
  KvPool pool(*backend_, hp_, 4);
  Sequence a(pool);
  append(a, 10);
  EXPECT_EQ(a.clean(), 10);
  append(a, 1, false);
  EXPECT_EQ(a.clean(), 10);
  append(a, 5);  // dense, but over a polluted position
  EXPECT_EQ(a.clean(), 10);
  EXPECT_EQ(a.fork().clean(), 10);
  a.truncate(12);
  EXPECT_EQ(a.clean(), 10);
  a.truncate(10);
  append(a, 3);
  EXPECT_EQ(a.clean(), 13);
  a.truncate(4);
  EXPECT_EQ(a.clean(), 4);
}

TEST_P(Pool, TooLittleMemoryIsAnError) {
  hp_.layers = 4096;
  hp_.kv_heads = 4096;
  EXPECT_NE(error_of([&] { KvPool(*backend_, hp_, 1 << 22); }).find("MiB for the KV cache"), std::string::npos);
}

}  // namespace
}  // namespace tidal
