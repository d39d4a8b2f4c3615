// Scan layers in the engine: sketches stay those of the keys, whatever happens to a sequence; batches, forks, short
// contexts, bytes.
#include "engine/exact.h"
#include "engine/greedy_chooser.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::kBudget;
using test::random_tokens;
using test::SmallEngine;

constexpr int kLayers = 6;

Plan scan_plan(int bits = 2, int dense = 0, int budget = kBudget) {
  Policy policy = sketch_policy(budget);
  policy.sketch_bits = bits;
  return Plan::sketch(kLayers, dense, policy);
}

/// With estimates of what is not selected.
Plan completed_plan() {
  Plan plan = scan_plan(2, 1, 16);
  plan.policy.completion = {2, 4};
  return plan;
}

/// Dense, Select, Sparse, Scan, Sparse, Scan.
Plan mixed_plan() {
  Plan plan = scan_plan();
  plan.roles = {Role::Dense, Role::Select, Role::Sparse, Role::Scan, Role::Sparse, Role::Scan};
  return plan;
}

class Scanning : public test::BackendTest<std::string> {
 protected:
  /// The sketches of all full blocks are those of the keys in them.
  void expect_current(SmallEngine& setup, const Sequence& sequence, int bits = 2) {
    for (const KvLayer& layer : setup.engine.pool().layers()) {
      const SketchLayout layout{layer.head_dim, bits};
      ASSERT_TRUE(layer.keeps_sketch(bits));
      std::vector<std::byte> tile(static_cast<size_t>(layer.tile_bytes()));
      std::vector<std::byte> kept(layout.bytes()), expected(layout.bytes());
      for (int b = 0; b < sequence.length() / kBlockTokens; ++b) {
        for (int h = 0; h < layer.kv_heads; ++h) {
          const BlockId block = sequence.blocks()[b];
          setup.backend->read(tile.data(), layer.tile(block, h), tile.size());
          setup.backend->read(kept.data(), layer.sketch(bits, block, h), kept.size());
          sketch_block(layout, layer.type, tile.data(), expected.data());
          ASSERT_EQ(kept, expected) << "block " << b << " of " << sequence.length() << " positions";
          if (!layer.value_sketches) continue;
          const ValueSketchLayout values{layer.head_dim};
          kept.resize(static_cast<size_t>(values.bytes()));
          std::vector<std::byte> of_values(kept.size());
          setup.backend->read(kept.data(), layer.value_sketch(block, h), kept.size());
          sketch_values(values, layer.type, tile.data(), of_values.data());
          ASSERT_EQ(kept, of_values) << "values of block " << b << " of " << sequence.length() << " positions";
          kept.resize(expected.size());
        }
      }
    }
  }

  void decode(SmallEngine& setup, Sequence& sequence, int count, uint64_t stream) {
    for (const Token token : random_tokens(count, stream)) setup.engine.decode(sequence, token);
  }
};

INSTANTIATE_TEST_SUITE_P(All, Scanning, testing::ValuesIn(test::kBackends),
                         [](const auto& info) { return info.param; });

TEST_P(Scanning, SketchesFollowPrefillAndDecode) {
  for (const int bits : {1, 2, 4}) {
    SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan(bits));
    for (const int prefix : {1, 63, 64, 65, 200}) {
      Sequence sequence = setup.prefilled(prefix, 1);
      expect_current(setup, sequence, bits);
      decode(setup, sequence, 70, 2);  // across the edge of a block
      expect_current(setup, sequence, bits);
      setup.engine.prefill(sequence, random_tokens(75, 3));
      expect_current(setup, sequence, bits);
    }
  }
}

// Steps of full attention below the number of a plan keep them up for the first step that scans.
TEST_P(Scanning, SketchesFollowStepsBelowTheNumber) {
  Plan plan = scan_plan();
  plan.full_below = 250;
  SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, 180, 2);
  EXPECT_EQ(sequence.clean(), 240);
  expect_current(setup, sequence);
}

TEST_P(Scanning, SketchesFollowCorrection) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan(), {.context = 512, .tokens = 4096, .chunk = 48});
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, 150, 2);
  const Sequence fork = sequence.fork();
  setup.engine.correct(sequence);  // in chunks that end inside of blocks, of which the fork keeps its own
  expect_current(setup, sequence);
  expect_current(setup, fork);
  EXPECT_FALSE(test::same_bits(setup.cache(sequence), setup.cache(fork)));
}

TEST_P(Scanning, SketchesFollowACorrectionThatStopsInABlock) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  Sequence sequence = setup.prefilled(60, 1);
  decode(setup, sequence, 100, 2);
  const Engine::Request request{.sequence = &sequence, .tokens = {}, .correct = 30};
  setup.engine.step({&request, 1});
  EXPECT_EQ(sequence.clean(), 90);
  expect_current(setup, sequence);
}

TEST_P(Scanning, SketchesFollowTruncation) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  Sequence sequence = setup.prefilled(200, 1);
  const Sequence fork = sequence.fork();
  sequence.truncate(100);
  decode(setup, sequence, 60, 2);
  expect_current(setup, sequence);
  expect_current(setup, fork);
}

TEST_P(Scanning, SketchesOfABlockThatIsInUseAlready) {
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(200, 1);
  EXPECT_EQ(setup.engine.pool().sketch_bytes(), 0);
  setup.engine.set_plan(scan_plan(1));
  expect_current(setup, sequence, 1);
  // One step may follow plans of several widths.
  Sequence other = sequence.fork();
  const Plan plans[] = {scan_plan(1), scan_plan(4, 2)};
  const std::vector<Token> token = {5};
  const Engine::Request requests[] = {{.sequence = &sequence, .tokens = token, .decode = true, .plan = &plans[0]},
                                      {.sequence = &other, .tokens = token, .decode = true, .plan = &plans[1]}};
  setup.engine.step(requests);
  expect_current(setup, sequence, 4);
  const int64_t head_blocks = int64_t{setup.engine.pool().blocks()} * setup.model.hp.kv_heads * kLayers;
  EXPECT_EQ(setup.engine.pool().sketch_bytes(),
            head_blocks * (SketchLayout{32, 1}.bytes() + SketchLayout{32, 4}.bytes()));
}

TEST_P(Scanning, SketchesOfValuesFollow) {
  if (!make_backend(GetParam(), 1)->completes()) GTEST_SKIP() << "refused there";
  SmallEngine setup(GetParam());
  Sequence sequence = setup.prefilled(200, 1);
  setup.engine.set_plan(completed_plan());
  EXPECT_TRUE(setup.engine.pool().layers()[0].value_sketches);
  expect_current(setup, sequence);  // of blocks that were in use
  decode(setup, sequence, 70, 2);
  const Sequence fork = sequence.fork();
  setup.engine.prefill(sequence, random_tokens(75, 3));
  sequence.truncate(230);
  setup.engine.correct(sequence);
  decode(setup, sequence, 60, 2);
  expect_current(setup, sequence);
  expect_current(setup, fork);
  const int64_t head_blocks = int64_t{setup.engine.pool().blocks()} * setup.model.hp.kv_heads * kLayers;
  EXPECT_EQ(setup.engine.pool().sketch_bytes(),
            head_blocks * (SketchLayout{32, 2}.bytes() + ValueSketchLayout{32}.bytes()));
  EXPECT_EQ(setup.engine.pool().sketch_bytes(),
            engine_memory(*setup.backend, setup.model.hp, completed_plan(),
                          {.context = 512, .tokens = 4096, .chunk = 512, .sequences = 8})
                .sketches);
}

TEST_P(Scanning, EstimatesAreRefusedWhereTheyCannotBe) {
  if (make_backend(GetParam(), 1)->completes()) GTEST_SKIP() << "they can";
  SmallEngine setup(GetParam());
  EXPECT_EQ(test::error_of([&] { setup.engine.set_plan(completed_plan()); }),
            "plan: the " + GetParam() + " backend cannot estimate what is not selected");
}

TEST_P(Scanning, RandomFillIsSketched) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  Sequence sequence = setup.engine.create();
  setup.engine.fill_random(sequence, 300, 3);
  expect_current(setup, sequence);
}

TEST_P(Scanning, AContextWithinTheBudgetIsFullAttention) {
  for (const Plan& plan : {scan_plan(2, 0, 100), scan_plan(1, 2, 100)}) {
    SmallEngine setup(GetParam(), GGML_TYPE_F32, plan);
    SmallEngine full(GetParam(), GGML_TYPE_F32, Plan::full(kLayers));
    Sequence a = setup.prefilled(90, 1), b = full.prefilled(90, 1);
    for (int i = 0; i < 10; ++i) {
      EXPECT_EQ(test::copy(setup.engine.decode(a, i)), test::copy(full.engine.decode(b, i)));
      EXPECT_EQ(a.clean(), a.length());
    }
    setup.engine.decode(a, 10);
    EXPECT_LT(a.clean(), a.length());
  }
}

// With every full block in the budget a Scan layer reads everything, in pieces of another length: full attention up to
// rounding. With a small budget it must not be.
TEST_P(Scanning, EverythingSelectedIsCloseToFullAttention) {
  const Plan plan = scan_plan(2, 0, 192);
  SmallEngine setup("reference", GGML_TYPE_F32, plan), full("reference", GGML_TYPE_F32, Plan::full(kLayers));
  SmallEngine small("reference", GGML_TYPE_F32, scan_plan());
  Sequence a = setup.prefilled(230, 1), b = full.prefilled(230, 1), c = small.prefilled(230, 1);
  const auto x = setup.engine.decode(a, 1), y = full.engine.decode(b, 1), z = small.engine.decode(c, 1);
  double far = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(x[i], y[i], 1e-4);  // float32 sums of 230 terms in six layers of unit gain
    far = std::max(far, std::abs(static_cast<double>(z[i]) - y[i]));
  }
  EXPECT_GT(far, 1e-2);
}

TEST_P(Scanning, ABatchIsAsAlone) {
  const bool completes = make_backend(GetParam(), 1)->completes();
  const Plan plans[] = {scan_plan(),        completes ? completed_plan() : scan_plan(2, 1),
                        scan_plan(2, 2),    mixed_plan(),
                        test::small_plan(), Plan::full(kLayers)};
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  std::vector<Sequence> together, alone;
  const int lengths[] = {70, 231, 131, 191, 257, 300};
  for (const int length : lengths) {
    together.push_back(setup.prefilled(length, length));
    alone.push_back(together.back().fork());
  }
  for (int i = 0; i < 3; ++i) {
    const std::vector<Token> token = {i};
    std::vector<Engine::Request> requests;
    for (size_t s = 0; s < together.size(); ++s) {
      requests.push_back({.sequence = &together[s], .tokens = token, .decode = true, .plan = &plans[s]});
    }
    const std::vector<float> logits = test::copy(setup.engine.step(requests));
    const size_t vocab = setup.model.hp.vocab;
    for (size_t s = 0; s < alone.size(); ++s) {
      const Engine::Request request{.sequence = &alone[s], .tokens = token, .decode = true, .plan = &plans[s]};
      const auto own = setup.engine.step({&request, 1});
      EXPECT_TRUE(std::equal(own.begin(), own.end(), logits.begin() + static_cast<ptrdiff_t>(s * vocab))) << s;
    }
  }
}

TEST_P(Scanning, ExactModeIsFullAttention) {
  SmallEngine setup(GetParam(), GGML_TYPE_F32, scan_plan());
  const Sequence prefix = setup.prefilled(150, 1);
  Sequence full = prefix.fork(), exact = prefix.fork();
  GreedyChooser chooser;
  std::vector<Token> expected, text;
  for (Token token = 7; expected.size() < 40;) {
    const Engine::Request request{.sequence = &full, .tokens = {&token, 1}};
    expected.push_back(token = chooser.choose(step(setup.engine, request, chooser)));
  }
  ExactDecoder decoder(setup.engine, {.drafts = 6, .adapt = false, .copy = false});
  for (Token token = 7; text.size() < 40; token = text.back()) {
    const auto more = decoder.advance(exact, token, 40 - static_cast<int>(text.size()), chooser);
    text.insert(text.end(), more.begin(), more.end());
  }
  EXPECT_GT(decoder.statistics().sparse.tried, 0);
  EXPECT_EQ(text, expected);
  expect_current(setup, exact);
}

TEST(ScanBytes, AreTheSketchTheSelectedRowsAndTheBlockStillFilling) {
  SmallEngine setup("cpu", GGML_TYPE_F32, scan_plan(2, 1));
  const Hyperparameters& hp = setup.model.hp;
  const int64_t row = int64_t{2} * 2 * hp.head_dim * hp.kv_heads;
  const int64_t sketch = (int64_t{2} * 2 * 32 + 64 * 32 * 2 / 8) * hp.kv_heads;
  EXPECT_EQ(setup.engine.decode_bytes(300) - setup.model.decode_weight_bytes(),
            300 * row + 5 * ((kBudget + 300 % 64) * row + 300 / 64 * sketch));
  EXPECT_EQ(setup.engine.decode_bytes(kBudget) - setup.model.decode_weight_bytes(), 6 * kBudget * row);
  // A Sparse layer reads what the Scan layer before it chose, the filling block included.
  Plan reusing = setup.engine.plan();
  reusing.roles.back() = Role::Sparse;
  EXPECT_EQ(setup.engine.decode_bytes(300, reusing) - setup.model.decode_weight_bytes(),
            300 * row + 5 * (kBudget + 300 % 64) * row + 4 * (300 / 64) * sketch);
}

}  // namespace
}  // namespace tidal
