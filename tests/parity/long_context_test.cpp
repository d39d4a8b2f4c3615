// Contexts to 131072 positions and batches of 64 sequences of any length, on every backend against the reference.
#include <gtest/gtest.h>

#include <tuple>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

class LongContext : public test::BackendTest<std::string> {
 protected:
  std::vector<float> attend(const std::string& backend, const HostBatch& batch, const HostCache& cache,
                            const std::vector<float>& q) const {
    Device device(backend);
    device.begin(hp_, batch);
    const Rows out = device.rows(batch->rows(), hp_.q_width());
    device->attend(*RoleBatch(batch, Role::Dense), 0, device.rows(q, hp_.q_width()), device.cache(cache), {}, out);
    return device.read(out);
  }

  std::vector<int32_t> select(const std::string& backend, const HostBatch& batch, const HostCache& cache,
                              const std::vector<float>& q, const Policy& policy) const {
    Device device(backend);
    device.begin(hp_, batch);
    const Rows out = device.rows(batch->rows(), hp_.q_width());
    const Selection selection = device.selection(policy, hp_, batch->rows());
    device->attend(*RoleBatch(batch, Role::Select, policy), 0, device.rows(q, hp_.q_width()), device.cache(cache),
                   selection, out);
    return device.read(selection, batch->rows(), policy.budget);
  }

  void expect_dense(const std::vector<ChunkShape>& chunks) {
    const HostBatch batch(chunks, hp_.vocab, random_);
    const HostCache cache = random_cache(hp_, batch.blocks(), random_);
    const std::vector<float> q = random_.uniform(static_cast<size_t>(batch->rows()) * hp_.q_width(), 3.0f);
    expect_close("attend", attend(GetParam(), batch, cache, q), attend("reference", batch, cache, q),
                 attention_bounds(hp_, batch, cache, q, true));
  }

  /// Whole numbers, whose sums are exact in any order: the sets are equal, whatever ties there are.
  void expect_sets(const std::vector<int>& contexts) {
    const HostBatch batch(decode_chunks(contexts), hp_.vocab, random_);
    HostCache cache(hp_, batch.blocks());
    for (Bf16& value : cache.values) value = to_bf16(static_cast<float>(random_.integer(-4, 4)));
    std::vector<float> q(static_cast<size_t>(batch->rows()) * hp_.q_width());
    for (float& value : q) value = static_cast<float>(random_.integer(-2, 2));
    for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
      const Policy policy{scope, Pooling::Max, 256, 4, 64};
      EXPECT_EQ(select(GetParam(), batch, cache, q, policy), select("reference", batch, cache, q, policy));
    }
  }

  Hyperparameters hp_ = attention_shape(2, 1, 128);
  Random random_{7};
};

TEST_P(LongContext, Dense) { expect_dense({{131071, 1}, {99999, 1}, {65535, 3}, {131000, 9}}); }

TEST_P(LongContext, Select) { expect_sets({131072, 100001, 65536, 32769}); }

// On a device these have clusters with more threads.
TEST_P(LongContext, SelectOfManyHeads) {
  hp_ = attention_shape(8, 1, 64);
  expect_sets({131072, 100001, 70000, 513});
}

// What is equal lies in every piece that a context is cut into: the lowest positions are taken, by count and by mass.
TEST_P(LongContext, SelectAmongEqualScores) {
  for (const auto& [contexts, budget, values] : {std::tuple{std::vector{131072, 65537, 513, 300}, 256, 1},
                                                 {std::vector{131072, 65537, 513, 300}, 256, 3},
                                                 {std::vector{100001}, 20000, 3}}) {
    const HostBatch batch(decode_chunks(contexts), hp_.vocab, random_);
    HostCache cache(hp_, batch.blocks());
    for (size_t row = 0; row < cache.values.size(); row += 2 * hp_.head_dim) {
      cache.values[row] = to_bf16(static_cast<float>(random_.integer(1, values)));
    }
    const std::vector<float> q(static_cast<size_t>(batch->rows()) * hp_.q_width(), 1.0f);
    for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
      for (const double top_p : {1.0, 0.001, 0.1}) {
        Policy policy{scope, Pooling::Sum, budget, 4, 64};
        policy.top_p = top_p;
        EXPECT_EQ(select(GetParam(), batch, cache, q, policy), select("reference", batch, cache, q, policy))
            << values << " values, budget " << budget << ", top-p " << top_p;
      }
    }
  }
}

TEST_P(LongContext, ABatchOf64) {
  hp_ = attention_shape(4, 2, 64);
  std::vector<int> contexts;
  std::vector<ChunkShape> chunks;
  for (int i = 0; i < 64; ++i) {
    contexts.push_back(257 + random_.integer(0, 1500));
    chunks.push_back({random_.integer(0, 1500), 1});
  }
  expect_dense(chunks);
  expect_sets(contexts);
}

INSTANTIATE_TEST_SUITE_P(All, LongContext, testing::ValuesIn(kBackends), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tidal::parity
