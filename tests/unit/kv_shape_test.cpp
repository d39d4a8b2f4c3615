// Layers with a window whose KV heads are others than those of the layers that read the whole context.
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

/// Layers 2 and 5 read the whole context with 2 heads of 48 elements, the others a window with 3 of 32.
Hyperparameters two_shapes() {
  Hyperparameters hp = test::small_shape();
  hp.head_dim = 48;
  hp.rope = make_rope(Rope::Pairing::Halves, hp.head_dim, 10000, {}, {});
  hp.window_kv = {.heads = 3, .head_dim = 32};
  hp.window_rope = make_rope(Rope::Pairing::Halves, hp.window_kv.head_dim, 500, {}, {});
  for (int l = 0; l < hp.layers; ++l) hp.windows.push_back(l % 3 == 2 ? 0 : kWindow);
  return hp;
}

TEST(KvShapes, BytesAreThoseOfEachLayer) {
  const Hyperparameters hp = two_shapes();
  EXPECT_EQ(hp.kv(1), (KvShape{3, 32}));
  EXPECT_EQ(hp.kv(2), (KvShape{2, 48}));
  EXPECT_EQ(hp.q_width(1), 6 * 32);
  EXPECT_EQ(hp.q_width(2), 6 * 48);
  EXPECT_EQ(hp.q_width(), 6 * 48);
  EXPECT_EQ(hp.kv_width(), 96);
  const int64_t window_row = 2 * 2 * 3 * 32, row = 2 * 2 * 2 * 48;
  EXPECT_EQ(hp.kv_bytes_per_token(), 4 * window_row + 2 * row);
  EXPECT_EQ(hp.kv_bytes_read(300), 4 * kWindow * window_row + 2 * 300 * row);
}

class TwoShapes : public test::BackendTest<std::string> {
 protected:
  Plan plan_ = Plan::sketch(two_shapes(), 0, sketch_policy(kBudget));
};

TEST_P(TwoShapes, BlocksAreApart) {
  const auto backend = make_backend(GetParam(), 1);
  KvPool pool(*backend, two_shapes(), 3);
  EXPECT_EQ(pool.bytes(), 3 * 64 * two_shapes().kv_bytes_per_token());
  const std::vector<BlockId> all = {0, 1, 2};
  std::vector<std::vector<std::byte>> written;
  for (size_t l = 0; l < pool.layers().size(); ++l) {
    std::vector<std::byte>& bytes = written.emplace_back(all.size() * pool.kv_bytes(l));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + l * 13);
    pool.write_kv(l, all, bytes.data());
  }
  pool.copy(0, 2);
  for (size_t l = 0; l < pool.layers().size(); ++l) {
    std::vector<std::byte> expected = written[l], read(expected.size());
    const size_t block = pool.kv_bytes(l);
    std::copy_n(written[l].data() + 2 * block, block, expected.data());
    pool.read_kv(l, all, read.data());
    EXPECT_EQ(read, expected) << "layer " << l;
  }
}

TEST_P(TwoShapes, ChunksAndStepsAgree) {
  test::SmallEngine setup(GetParam(), two_shapes(), GGML_TYPE_F32, plan_, kOptions);
  setup.engine.set_plan(Plan::full(6));
  const std::vector<Token> tokens = test::random_tokens(100, 4);
  Sequence steps = setup.engine.create();
  setup.engine.prefill(steps, std::span(tokens).first(60));
  Sequence chunks = steps.fork();
  for (size_t i = 60; i < tokens.size(); i += 8) {
    const auto few = std::span(tokens).subspan(i, std::min<size_t>(8, tokens.size() - i));
    const std::vector<float> together = test::copy(setup.engine.prefill(chunks, few));
    std::vector<float> last;
    for (const Token token : few) last = test::copy(setup.engine.decode(steps, token));
    EXPECT_EQ(together, last) << "behind position " << i;
  }
}

TEST_P(TwoShapes, MemoryAndBytesReadAreFound) {
  test::SmallEngine setup(GetParam(), two_shapes(), GGML_TYPE_F32, plan_, kOptions);
  const Hyperparameters& hp = setup.model.hp;
  const KvPool& pool = setup.engine.pool();
  EXPECT_EQ(pool.bytes(), hp.kv_bytes_per_token() * kBlockTokens * pool.blocks());
  EXPECT_EQ(engine_memory(*setup.backend, hp, plan_, kOptions).cache, pool.bytes());
  EXPECT_EQ(engine_memory(*setup.backend, hp, plan_, kOptions).sketches, pool.sketch_bytes());
  const int64_t weights = setup.model.decode_weight_bytes();
  EXPECT_EQ(setup.engine.decode_bytes(300, Plan::full(6)) - weights, hp.kv_bytes_read(300));
  const int64_t sketch = SketchLayout{48, 2}.bytes() * 2, row = hp.kv(2).row_bytes();
  EXPECT_EQ(setup.engine.decode_bytes(300) - weights,
            2 * (kBudget + 300 % 64) * row + 4 * kWindow * hp.kv(0).row_bytes() + 2 * (300 / 64) * sketch);
  Sequence filled = setup.engine.create();
  setup.engine.fill_random(filled, 200, 3);
  const std::vector<Bf16> cache = setup.cache(filled);
  EXPECT_EQ(cache.size() * sizeof(Bf16), static_cast<size_t>(200 * hp.kv_bytes_per_token()));
  EXPECT_FALSE(std::any_of(cache.begin(), cache.end(), [](Bf16 value) { return to_float(value) == 0; }));
}

TEST_P(TwoShapes, SessionsAreRefused) {
  test::SmallEngine setup(GetParam(), two_shapes(), GGML_TYPE_F32, plan_, kOptions);
  EXPECT_EQ(error_of([&] { session_fingerprint(1, setup.engine.pool()); }),
            "sessions: files of models whose layers have KV heads of different number or size are not supported");
}

// By full attention, and by scanning for all positions but one, the least of all, against the reference on the same
// model. Prefill a few rows at a time, whose products are those of float32.
TEST_P(TwoShapes, FollowTheReference) {
  if (GetParam() == "reference") return;
  const Plan plan = Plan::sketch(two_shapes(), 0, sketch_policy(127));
  EngineOptions options = kOptions;
  options.chunk = 8;
  const auto logits = [&](const std::string& backend, bool sparse) {
    test::SmallEngine setup(backend, two_shapes(), GGML_TYPE_F32, sparse ? plan : Plan::full(6), options);
    Sequence sequence = setup.prefilled(150, 6);
    return test::copy(setup.engine.decode(sequence, 9));
  };
  for (const bool sparse : {false, true}) {
    const std::vector<float> reference = logits("reference", sparse), own = logits(GetParam(), sparse);
    double apart = 0, size = 0;
    for (size_t i = 0; i < own.size(); ++i) {
      apart += std::pow(static_cast<double>(own[i]) - reference[i], 2);
      size += std::pow(static_cast<double>(reference[i]), 2);
    }
    // K, V, queries and the weights of softmax may be rounded to bf16, by 2^-9 at most, in each of six layers; on a
    // device also seven matrices and what these are multiplied with.
    const double roundings = GetParam() == "cuda" ? 18 : 4;
    EXPECT_LT(std::sqrt(apart / size), std::sqrt(6 * roundings) / 512) << "sparse: " << sparse;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TwoShapes, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tidal
