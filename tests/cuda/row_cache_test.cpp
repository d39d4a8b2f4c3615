// Attention of selected rows that lie in host memory, through the row cache, against the same rows on the device.
#include <gtest/gtest.h>

#include <set>

#include "backend/backend.h"
#include "cuda/row_cache_setup.h"

namespace tidal::test {
namespace {

class CudaRowCache : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
  }
};

const HostRows::Shape kShapes[] = {
    {.heads = 8, .kv_heads = 2, .head_dim = 128, .scope = Scope::Kv},
    {.heads = 8, .kv_heads = 2, .head_dim = 64, .scope = Scope::Head},
    {.heads = 12, .kv_heads = 4, .head_dim = 96, .scope = Scope::Shared},
    {.heads = 4, .kv_heads = 1, .head_dim = 256, .scope = Scope::Kv},
    {.heads = 3, .kv_heads = 3, .head_dim = 80, .scope = Scope::Head},
    // Rows of 272 and of 240 bytes.
    {.heads = 8, .kv_heads = 2, .head_dim = 128, .scope = Scope::Kv, .type = KvType::Q8},
    {.heads = 6, .kv_heads = 3, .head_dim = 112, .scope = Scope::Head, .type = KvType::Q8},
};

std::string name_of(const HostRows::Shape& shape) {
  return std::to_string(shape.heads) + " heads of " + std::to_string(shape.head_dim) + ", scope " +
         std::to_string(static_cast<int>(shape.scope)) + ", " + kv_type_name(shape.type);
}

// With a set for every KV head, with too few rows, and with enough; blocks on either side; a slot written anew in
// between, which must not be read as it was.
TEST_F(CudaRowCache, GivesWhatRowsOnTheDeviceGive) {
  for (const HostRows::Shape& shape : kShapes) {
    for (const int cached : {8, 100, 4096}) {
      HostRows rows(shape, {700, 1500, 1499, 333}, cached);
      rows.place(0.3);
      for (int step = 0; step < 10; ++step) {
        if (step == 6) {
          for (int slot = rows.device_slots(); slot < rows.slots(); slot += 3) rows.write(slot);
        }
        if (step == 8) rows.place(0.7);
        rows.step();
        rows.walk(step == 0 ? 0.0 : 0.6);
        ASSERT_EQ(rows.attend(Role::Sparse, true), rows.attend(Role::Sparse, false))
            << name_of(shape) << ", " << cached << " cached rows, step " << step;
      }
    }
  }
}

TEST_F(CudaRowCache, GivesItWhereLayersScan) {
  for (const HostRows::Shape& shape : kShapes) {
    for (const int cached : {8, 4096}) {
      HostRows rows(shape, {700, 1500, 640, 333}, cached);
      rows.place(0.3);
      rows.sketch();
      for (int step = 0; step < 6; ++step) {
        rows.step();
        rows.ask(step);
        const auto with = rows.attend(Role::Scan, true);
        const auto selected = rows.selected();
        ASSERT_EQ(with, rows.attend(Role::Scan, false)) << name_of(shape) << ", step " << step;
        ASSERT_EQ(selected, rows.selected()) << name_of(shape) << ", step " << step;
      }
    }
  }
}

TEST_F(CudaRowCache, GivesItInAGraph) {
  HostRows rows(kShapes[0], {700, 1500, 1499}, 200);
  rows.place(0.2);
  rows.step();
  rows.walk(0);
  rows.capture(Role::Sparse);
  for (int step = 0; step < 10; ++step) {
    if (step == 5) {
      for (int slot = rows.device_slots(); slot < rows.slots(); ++slot) rows.write(slot);
    }
    rows.step();
    rows.walk(0.5);
    ASSERT_EQ(rows.replay(), rows.attend(Role::Sparse, false)) << "step " << step;
  }
}

// Budgets beyond what the cache holds: what finds no room stays where it is.
TEST_F(CudaRowCache, HoldsNoMoreThanItHasRoomFor) {
  HostRows rows(kShapes[0], {1500}, 16);
  rows.place(0);
  rows.step();
  rows.walk(0);
  EXPECT_EQ(rows.attend(Role::Sparse, true), rows.attend(Role::Sparse, false));
  const auto tags = rows.tags();
  EXPECT_EQ(std::count(tags.begin(), tags.end(), 0u), 0);
  EXPECT_EQ(std::set<cuda::RowTag>(tags.begin(), tags.begin() + 16).size(), 16u);
  EXPECT_EQ(std::set<cuda::RowTag>(tags.begin() + 16, tags.end()).size(), 16u);
}

// What was read in a step before is not read from the host again, as long as its slot's generation says so.
TEST_F(CudaRowCache, KeepsWhatWasRead) {
  HostRows rows(kShapes[0], {700, 1500}, 4096);
  rows.place(0);
  rows.step();
  rows.walk(0);
  const auto before = rows.attend(Role::Sparse, true);
  rows.wipe(false);
  rows.step();
  EXPECT_EQ(rows.attend(Role::Sparse, true), before);
  rows.wipe(true);
  rows.step();
  const auto after = rows.attend(Role::Sparse, true);
  EXPECT_NE(after, before);
  EXPECT_EQ(after, rows.attend(Role::Sparse, false));
}

// Rows of the batch that share blocks, and heads that share a KV head, ask for the same rows at the same time.
TEST_F(CudaRowCache, HoldsARowOnce) {
  HostRows rows({.heads = 16, .kv_heads = 2, .head_dim = 64, .scope = Scope::Head}, {1500, 1500, 1500, 1500, 1500},
                4096);
  rows.place(0);
  rows.share();
  for (int step = 0; step < 5; ++step) {
    rows.step();
    rows.walk(step == 0 ? 0.0 : 0.9);
    EXPECT_EQ(rows.attend(Role::Sparse, true), rows.attend(Role::Sparse, false)) << "step " << step;
  }
  const auto tags = rows.tags();
  const auto half = static_cast<ptrdiff_t>(tags.size() / 2);
  for (const auto first : {tags.begin(), tags.begin() + half}) {  // of each KV head
    std::multiset<cuda::RowTag> held;
    for (auto tag = first; tag != first + half; ++tag) {
      if (*tag != 0) held.insert(*tag & ((cuda::RowTag{1} << cuda::kRowBits) - 1));
    }
    EXPECT_GT(held.size(), 100u);
    EXPECT_EQ(held.size(), std::set<cuda::RowTag>(held.begin(), held.end()).size());
  }
}

TEST(RowCacheBytes, AreThoseOfRowsTagsAndLists) {
  RowCacheRoom room{.layers = {1, 2, 5}, .rows = 100, .heads = 32, .kv_heads = 8, .row_bytes = 512, .sequences = 4};
  room.policy.budget = 256;
  room.policy.scope = Scope::Kv;
  // 100 rows are 13 sets of 8; a set of positions has a block more than the budget, but one.
  EXPECT_EQ(cuda::RowCache::bytes(room), 3 * 8 * 104 * (512 + 8) + 4 * 4 * 8 * (256 + 63));
  room.policy.scope = Scope::Head;
  EXPECT_EQ(cuda::RowCache::bytes(room), 3 * 8 * 104 * (512 + 8) + 4 * 4 * 32 * (256 + 63));
  room.rows = 0;
  EXPECT_EQ(cuda::RowCache::bytes(room), 0);
}

TEST(RowCacheGrows, WithWhatIsAskedFor) {
  const RowCacheRoom small{.layers = {1, 2}, .rows = 64, .heads = 8, .kv_heads = 2, .row_bytes = 256, .sequences = 1};
  const cuda::RowCache none;
  EXPECT_EQ(none.with(small), small);
  EXPECT_FALSE(none.has(small));
  EXPECT_FALSE(none.layer(1, {}, {}));
}

}  // namespace
}  // namespace tidal::test
