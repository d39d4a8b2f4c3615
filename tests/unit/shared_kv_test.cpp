// Layers that read the K and V of earlier ones: kept once, read and selected from like their own.
#include <gtest/gtest.h>

#include "engine/session_file.h"
#include "model/plan.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::error_of;
using test::kBudget;

constexpr int kWindow = 40;
const EngineOptions kOptions = {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 4};

/// Layers 3 and 4 read the K and V of layer 1, within a window, and layer 5 those of layer 2, all of them.
Hyperparameters sharing() {
  Hyperparameters hp = test::small_shape();
  for (int l = 0; l < hp.layers; ++l) hp.windows.push_back(l % 3 == 2 ? 0 : kWindow);
  hp.shared_kv_layers = 3;
  return hp;
}

TEST(SharedKv, IsThatOfTheLastLayerOfAKind) {
  const Hyperparameters hp = sharing();
  std::vector<int> sources;
  for (int l = 0; l < hp.layers; ++l) sources.push_back(hp.kv_layer(l));
  EXPECT_EQ(sources, (std::vector<int>{0, 1, 2, 1, 1, 2}));
  EXPECT_EQ(hp.kv_bytes_per_token(), 3 * hp.kv(0).row_bytes()) << "counted once";
  EXPECT_EQ(hp.kv_bytes_read(300), (2 * 300 + 4 * kWindow) * hp.kv(0).row_bytes()) << "but read by every layer";
  EXPECT_EQ(hp.sketched_layers(), 1);
}

class SharedKvEngine : public test::BackendTest<std::string> {
 protected:
  Plan plan_ = Plan::sketch(sharing(), 0, sketch_policy(kBudget));
};

TEST_P(SharedKvEngine, KeepsItOnce) {
  test::SmallEngine setup(GetParam(), sharing(), GGML_TYPE_F32, plan_, kOptions);
  const KvPool& pool = setup.engine.pool();
  const EngineMemory memory = engine_memory(*setup.backend, setup.model.hp, plan_, kOptions);
  EXPECT_EQ(pool.bytes(), setup.model.hp.kv_bytes_per_token() * kBlockTokens * pool.blocks());
  EXPECT_EQ(memory.cache, pool.bytes());
  EXPECT_EQ(memory.sketches, pool.sketch_bytes());
  EXPECT_EQ(pool.layers()[4], pool.layers()[1]);
  EXPECT_EQ(pool.layers()[5], pool.layers()[2]);
  EXPECT_TRUE(pool.layers()[5].keeps_sketch(2));
  EXPECT_EQ(error_of([&] { session_fingerprint(1, pool); }),
            "sessions: files of models whose layers share K and V are not supported");
  Sequence filled = setup.engine.create();
  setup.engine.fill_random(filled, 200, 3);
  for (const Bf16 value : setup.cache(filled)) ASSERT_NE(to_float(value), 0);
}

TEST_P(SharedKvEngine, ChunksAndStepsAgree) {
  test::SmallEngine setup(GetParam(), sharing(), GGML_TYPE_F32, plan_, kOptions);
  setup.engine.set_plan(Plan::full(6));
  const std::vector<Token> tokens = test::random_tokens(100, 4);
  Sequence steps = setup.engine.create();
  setup.engine.prefill(steps, std::span(tokens).first(60));
  Sequence chunks = steps.fork();  // whose last block is copied when it is written to
  for (size_t i = 60; i < tokens.size(); i += 8) {
    const auto few = std::span(tokens).subspan(i, std::min<size_t>(8, tokens.size() - i));
    const std::vector<float> together = test::copy(setup.engine.prefill(chunks, few));
    std::vector<float> last;
    for (const Token token : few) last = test::copy(setup.engine.decode(steps, token));
    EXPECT_EQ(together, last) << "behind position " << i;
  }
}

// The last layer gives logits alone, so that all that moves them is what it selected from the other layer's sketches.
TEST_P(SharedKvEngine, ALayerScansTheSketchesOfAnother) {
  test::SmallEngine setup(GetParam(), sharing(), GGML_TYPE_F32, plan_, kOptions);
  Plan last = plan_;
  last.roles[2] = Role::Dense;
  Sequence sequence = setup.prefilled(150, 6);
  const auto step = [&](const Plan& plan) {
    setup.engine.set_plan(plan);
    Sequence own = sequence.fork();
    return test::copy(setup.engine.decode(own, 9));
  };
  const std::vector<float> full = step(Plan::full(6)), scanned = step(last);
  EXPECT_NE(scanned, full);
  last.policy = sketch_policy(127);  // all positions but one, the least
  const std::vector<float> nearly = step(last);
  double few = 0, most = 0;
  for (size_t i = 0; i < full.size(); ++i) {
    few += std::pow(static_cast<double>(scanned[i]) - full[i], 2);
    most += std::pow(static_cast<double>(nearly[i]) - full[i], 2);
  }
  EXPECT_LT(most, few / 4);
}

INSTANTIATE_TEST_SUITE_P(Backends, SharedKvEngine, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tidal
