// The engine on small Gemma 4 models in all their forms: what a row gets depends neither on its company nor on threads.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/engine.h"
#include "model/plan.h"
#include "support/loading.h"
#include "support/small_gemma4.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::SmallGemma4;

struct Form {
  const char* name;
  SmallGemma4 shape;
};

class Gemma4Engine : public test::BackendTest<std::tuple<std::string, Form>> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (!IsSkipped()) small_gemma4(std::get<1>(GetParam()).shape).save(folder_.file("model.gguf"));
  }
  std::unique_ptr<Backend> backend(int threads = 2) const { return make_backend(std::get<0>(GetParam()), threads); }
  Model load(Backend& backend) const { return load_model(folder_.file("model.gguf"), backend); }
  static std::vector<Token> tokens(int count, int stream) {
    std::vector<Token> result;
    for (int i = 0; i < count; ++i) result.push_back((i * i + stream * i + stream) % 32);
    return result;
  }
  inline static const EngineOptions kOptions = {.context = 128, .tokens = 1024, .chunk = 128, .sequences = 4};

  test::TemporaryFolder folder_;
};

TEST_P(Gemma4Engine, ChunksAndStepsAgree) {
  const auto backend = this->backend();
  const Model model = load(*backend);
  Engine engine(*backend, model, Plan::full(model.hp.layers), kOptions);
  const std::vector<Token> tokens = this->tokens(100, 4);
  Sequence steps = engine.create();
  engine.prefill(steps, std::span(tokens).first(60));
  Sequence chunks = steps.fork();
  for (size_t i = 60; i < tokens.size(); i += 8) {
    const std::vector<float> together = test::copy(engine.prefill(chunks, std::span(tokens).subspan(i, 8)));
    std::vector<float> last;
    for (const Token token : std::span(tokens).subspan(i, 8)) last = test::copy(engine.decode(steps, token));
    EXPECT_EQ(together, last) << "behind position " << i;
  }
}

// A long prompt, a short one and a token of three sequences, together and each alone.
TEST_P(Gemma4Engine, CompanyAndThreadsChangeNothing) {
  const std::vector<std::vector<Token>> more = {tokens(90, 1), tokens(5, 2), tokens(1, 3)};
  const auto logits = [&](int threads, bool together) {
    const auto backend = this->backend(threads);
    const Model model = load(*backend);
    Engine engine(*backend, model, Plan::full(model.hp.layers), kOptions);
    std::vector<Sequence> sequences;
    std::vector<Engine::Request> requests;
    for (size_t s = 0; s < more.size(); ++s) {
      sequences.push_back(engine.create());
      engine.prefill(sequences.back(), tokens(30, 7 + static_cast<int>(s)));
    }
    std::vector<float> all;
    for (size_t s = 0; s < more.size(); ++s) {
      const Engine::Request request{.sequence = &sequences[s], .tokens = more[s], .all_logits = true};
      requests.push_back(request);
      if (together) continue;
      const std::vector<float> own = test::copy(engine.step({&request, 1}));
      all.insert(all.end(), own.begin(), own.end());
    }
    return together ? test::copy(engine.step(requests)) : all;
  };
  const std::vector<float> alone = logits(1, false);
  EXPECT_EQ(logits(1, true), alone);
  EXPECT_EQ(logits(2, true), alone);
}

TEST_P(Gemma4Engine, LayersThatReadAllScan) {
  const auto backend = this->backend();
  const Model model = load(*backend);
  const Plan plan = Plan::sketch(model.hp, 0, sketch_policy(16));
  Engine engine(*backend, model, plan, kOptions);
  Sequence sequence = engine.create();
  engine.prefill(sequence, tokens(100, 5));
  Sequence full = sequence.fork();
  const std::vector<float> scanned = test::copy(engine.decode(sequence, 7));
  engine.set_plan(Plan::full(model.hp.layers));
  const std::vector<float> dense = test::copy(engine.decode(full, 7));
  EXPECT_NE(scanned, dense);
  for (const float logit : scanned) EXPECT_LE(std::abs(logit), 3.0f) << "the cap";
}

// The shapes that benchmarks know, with fewer and smaller layers.
class Gemma4Shapes : public test::BackendTest<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, Gemma4Shapes, testing::Values("cpu", "cuda"),
                         [](const auto& info) { return info.param; });

TEST_P(Gemma4Shapes, RandomWeightsRun) {
  for (const char* name : {"gemma4-31b", "gemma4-26b-a4b", "gemma4-e4b", "gemma2-2b"}) {
    SCOPED_TRACE(name);
    Hyperparameters hp = known_shape(name);
    hp.layers = 12;
    hp.windows.resize(12);
    hp.shared_kv_layers = hp.shared_kv_layers > 0 ? 6 : 0;
    hp.width = 256;
    hp.ffn = 128;
    hp.vocab = 64;
    if (hp.experts) {
      hp.experts.count = 6;
      hp.experts.used = 2;
      hp.experts.ffn = 64;
      hp.experts.shared_ffn = 128;
    }
    const auto backend = make_backend(GetParam(), 2);
    ASSERT_EQ(backend->unsupported(hp), "");
    const Model model = random_model(hp, GGML_TYPE_Q8_0, 1, *backend);
    Engine engine(*backend, model, Plan::full(12), {.context = 128, .tokens = 1024, .chunk = 64, .sequences = 4});
    Sequence sequence = engine.create();
    engine.fill_random(sequence, 70, 2);
    for (const float logit : engine.decode(sequence, 9)) ASSERT_TRUE(std::isfinite(logit));
    engine.set_plan(Plan::sketch(hp, 0, sketch_policy(16)));
    const std::vector<float> scanned = test::copy(engine.decode(sequence, 9));
    for (const float logit : scanned) ASSERT_TRUE(std::isfinite(logit));
    EXPECT_NE(scanned, std::vector<float>(scanned.size(), scanned.front()));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Forms, Gemma4Engine,
    testing::Combine(
        testing::Values("cpu", "cuda"),
        testing::Values(
            Form{"dense", {}}, Form{"experts", {.experts = 6}}, Form{"experts_apart", {.experts = 6, .fused = false}},
            Form{"shared",
                 {.layers = 6, .keys_as_values = false, .shared_kv = 2, .double_wide = true, .layer_input = 16}})),
    [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param).name; });

}  // namespace
}  // namespace tidal
