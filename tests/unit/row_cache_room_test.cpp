// How many rows of K and V in host memory an engine has its backend keep at hand.
#include <gtest/gtest.h>

#include "engine/engine_memory.h"
#include "support/small_model.h"

namespace tidal {
namespace {

constexpr int kManyBlocks = 100000;

TEST(RowCacheRoom, IsEightTimesTheBudget) {
  const Hyperparameters hp = test::small_shape(6);
  const EngineOptions options{.context = 100000, .sequences = 3};
  const auto rows = [&](int budget, int host_blocks = kManyBlocks, std::optional<int> cached = {}) {
    EngineOptions own = options;
    own.cached_rows = cached;
    return row_cache_room(hp, Plan::sketch(6, 1, sketch_policy(budget)), own, host_blocks).rows;
  };
  EXPECT_EQ(rows(1000), 8000);
  EXPECT_EQ(rows(16), 2048);
  EXPECT_EQ(rows(1000, 10), 640);  // more cannot be in host memory
  EXPECT_EQ(rows(1000, 0), 0);
  EXPECT_EQ(rows(1000, kManyBlocks, 300), 300);
  EXPECT_EQ(rows(1000, kManyBlocks, 0), 0);
  // A budget beyond the context is none.
  EXPECT_EQ(rows(1 << 30), 800000);
}

TEST(RowCacheRoom, IsForLayersThatReadSelectedPositions) {
  const Hyperparameters hp = test::small_shape(6);
  const EngineOptions options{.context = 4096, .sequences = 3};
  const RowCacheRoom room = row_cache_room(hp, Plan::tidal(6, 4, default_policy(32)), options, kManyBlocks);
  EXPECT_EQ(room.layers, (std::vector<int>{3, 5}));  // Dense, Dense, Select, Sparse, Select, Sparse
  EXPECT_EQ(room.sequences, 3);
  EXPECT_EQ(room.row_bytes * room.kv_heads, hp.kv(3).row_bytes());
  EXPECT_EQ(room.policy.budget, 32);
  EXPECT_EQ(row_cache_room(hp, Plan::full(6), options, kManyBlocks).rows, 0);
}

}  // namespace
}  // namespace tidal
