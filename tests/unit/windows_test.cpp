// Models some of whose layers see a window of the context: which plans they take, what a step reads, what is kept.
#include <gtest/gtest.h>

#include "engine/session_file.h"
#include "eval/candidate.h"
#include "model/plan.h"
#include "unit/engine_setup.h"

namespace tidal {
namespace {

using test::error_of;
using test::kBudget;

constexpr int kWindow = 40;

/// Every third layer reads the whole context: 2, 5, 8, ...
Hyperparameters windowed(int layers, int window = kWindow) {
  Hyperparameters hp = test::small_shape(layers);
  for (int l = 0; l < layers; ++l) hp.windows.push_back(l % 3 == 2 ? 0 : window);
  return hp;
}

std::string letters(const Plan& plan) {
  std::string text;
  for (const Role role : plan.roles) text += "DS.C"[static_cast<size_t>(role)];
  return text;
}

TEST(Windows, SeeTheLastPositions) {
  const Hyperparameters hp = windowed(4);
  EXPECT_EQ(hp.first_seen(0, 0), 0);
  EXPECT_EQ(hp.first_seen(0, kWindow - 1), 0);
  EXPECT_EQ(hp.first_seen(0, kWindow), 1);
  EXPECT_EQ(hp.first_seen(2, 5000), 0);
  EXPECT_EQ(hp.layers_that_read_all(), std::vector<int>{2});
  const int64_t row = int64_t{2} * 2 * hp.kv_width();
  EXPECT_EQ(hp.kv_bytes_read(30), 4 * 30 * row);
  EXPECT_EQ(hp.kv_bytes_read(300), (300 + 3 * kWindow) * row);
  EXPECT_EQ(hp.kv_bytes_per_token(), 4 * row) << "they are kept all the same";
}

TEST(Windows, PlansSpeakOfTheOtherLayers) {
  EXPECT_EQ(letters(Plan::sketch(windowed(7), 0, sketch_policy(8))), "DDCDDCD");
  EXPECT_EQ(letters(Plan::sketch(windowed(7), 1, sketch_policy(8))), "DDDDDCD");
  EXPECT_EQ(letters(Plan::tidal(windowed(15), 11, default_policy(8))), "DDDDDDDDSDDSDD.");
  EXPECT_EQ(error_of([] { Plan::sketch(windowed(7), 2, sketch_policy(8)); }),
            "plan: 2 Dense layers of 2, expected 0 to 1 so that one is left to scan");
  EXPECT_EQ(error_of([] { Plan::sketch(windowed(2), 0, sketch_policy(8)); }),
            "plan: no layer reads the whole context, so there is none to scan");
  EXPECT_EQ(error_of([] { Plan::tidal(windowed(9), 8, default_policy(8)); }),
            "plan: 3 layers that read the whole context are too few for two Dense, a Select and a reselect layer");
  EXPECT_EQ(error_of([] { Plan::tidal(windowed(15), 9, default_policy(8)); }),
            "reselect: layer 9 is none of those that can be, expected one of 11, 14");
}

TEST(Windows, CalibrationCountsAmongTheOtherLayers) {
  const CandidatePolicies policies = {default_policy(64), sketch_policy(48)};
  EXPECT_EQ(letters(plan_with(Candidate::sketch(2, 1, {2}), windowed(9), policies)), "DDDDDCDD.");
  EXPECT_EQ(letters(plan_with(Candidate::tidal({0, 2}), windowed(12), policies)), "DDSDD.DDSDD.");
}

TEST(Windows, TheRuleFindsALayerThatCanReselect) {
  for (int layers = 12; layers < 70; ++layers) {
    const Hyperparameters hp = windowed(layers);
    Plan::tidal(hp, default_reselect(hp), default_policy(256)).check(hp);
  }
}

TEST(Windows, OtherRolesAreRefused) {
  const Hyperparameters hp = windowed(6);
  for (const auto& [role, word] : {std::pair{Role::Select, "select"}, {Role::Sparse, "sparse"}, {Role::Scan, "scan"}}) {
    Plan plan = Plan::sketch(hp, 0, sketch_policy(8));
    plan.roles[4] = role;
    EXPECT_EQ(
        error_of([&] { plan.check(hp); }),
        "plan: layer 4 does not read the whole context, so it can be nothing but Dense, not " + std::string(word));
  }
}

TEST(Windows, PlanFilesNameTheOtherLayers) {
  const Hyperparameters hp = windowed(9);
  Plan plan = Plan::sketch(hp, 1, sketch_policy(8));
  plan.roles[8] = Role::Sparse;
  const std::string json = to_json(plan, hp);
  EXPECT_NE(json.find("\"dense\": [\n      2\n    ]"), std::string::npos) << json;
  EXPECT_EQ(plan_from_json(json, "p.json", hp), plan);
  std::string wrong = json;
  wrong.replace(wrong.find("      5"), 7, "      4");
  EXPECT_EQ(error_of([&] { plan_from_json(wrong, "p.json", hp); }),
            "p.json: plan: layer 4 does not read the whole context, so it can be nothing but Dense, not scan");
}

class WindowedEngine : public test::BackendTest<std::string> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    backend_ = make_backend(GetParam(), 2);
  }
  Model model(int window) {
    const Hyperparameters hp = windowed(6, window);
    return test::random_small_model(hp, GGML_TYPE_F32, *backend_);
  }
  inline static const EngineOptions kOptions = {.context = 512, .tokens = 2048, .chunk = 64, .sequences = 4};

  std::unique_ptr<Backend> backend_;
};

TEST_P(WindowedEngine, AWindowAsLongAsTheContextIsNone) {
  // One piece of attention with a window and without: not even the order of the sums differs.
  const std::vector<Token> tokens = test::random_tokens(128, 3);
  const auto logits = [&](int window) {
    const Model model = this->model(window);
    Engine engine(*backend_, model, Plan::full(6), kOptions);
    Sequence sequence = engine.create();
    std::vector<float> result;
    engine.prefill(sequence, std::span(tokens).first(120));
    for (size_t i = 120; i < tokens.size(); ++i) result = test::copy(engine.decode(sequence, tokens[i]));
    return result;
  };
  const std::vector<float> whole = logits(0);
  EXPECT_EQ(logits(128), whole);
  EXPECT_NE(logits(127), whole);
}

TEST_P(WindowedEngine, ChunksAndStepsAgree) {
  const Model model = this->model(kWindow);
  const std::vector<Token> tokens = test::random_tokens(100, 4);
  Engine engine(*backend_, model, Plan::full(6), kOptions);
  Sequence steps = engine.create();
  engine.prefill(steps, std::span(tokens).first(60));
  Sequence chunks = steps.fork();
  for (size_t i = 60; i < tokens.size(); i += 8) {
    const auto few = std::span(tokens).subspan(i, std::min<size_t>(8, tokens.size() - i));
    const std::vector<float> together = test::copy(engine.prefill(chunks, few));
    std::vector<float> last;
    for (const Token token : few) last = test::copy(engine.decode(steps, token));
    EXPECT_EQ(together, last) << "behind position " << i;
  }
}

TEST_P(WindowedEngine, StepsWithinTheBudgetAreFullAttentions) {
  const Model model = this->model(kWindow);
  const Plan plan = Plan::sketch(model.hp, 0, sketch_policy(127));
  Engine engine(*backend_, model, plan, kOptions);
  Sequence sparse = engine.create();
  engine.prefill(sparse, test::random_tokens(126, 5));
  Sequence full = sparse.fork();
  const auto step = [&](Sequence& sequence, const Plan& by) {
    engine.set_plan(by);
    return test::copy(engine.decode(sequence, 7));
  };
  EXPECT_EQ(step(sparse, plan), step(full, Plan::full(6)));
  EXPECT_NE(step(sparse, plan), step(full, Plan::full(6)));
}

TEST_P(WindowedEngine, BytesAreThoseOfTheWindow) {
  const Model model = this->model(kWindow);
  const Plan plan = Plan::sketch(model.hp, 0, sketch_policy(kBudget));
  Engine engine(*backend_, model, plan, kOptions);
  const int64_t row = int64_t{2} * 2 * 32 * 2, sketch = SketchLayout{32, 2}.bytes() * 2;
  const int64_t weights = model.decode_weight_bytes();
  EXPECT_EQ(engine.decode_bytes(300, Plan::full(6)) - weights, (2 * 300 + 4 * kWindow) * row);
  EXPECT_EQ(engine.decode_bytes(30, Plan::full(6)) - weights, 6 * 30 * row);
  EXPECT_EQ(engine.decode_bytes(300) - weights,
            (2 * (kBudget + 300 % 64) + 4 * kWindow) * row + 2 * (300 / 64) * sketch);
}

TEST_P(WindowedEngine, SketchesAreKeptWhereALayerMayScan) {
  const Model model = this->model(kWindow);
  const Plan plan = Plan::sketch(model.hp, 0, sketch_policy(kBudget));
  Engine engine(*backend_, model, plan, kOptions);
  const int64_t block = SketchLayout{32, 2}.bytes() * 2;
  EXPECT_EQ(engine.pool().sketch_bytes(), 2 * block * engine.pool().blocks());
  EXPECT_GE(engine_memory(*backend_, model.hp, plan, kOptions).sketches, engine.pool().sketch_bytes());
  EXPECT_EQ(engine.pool().layers()[0].keeps_sketch(2), false);
  EXPECT_EQ(engine.pool().layers()[2].keeps_sketch(2), true);
}

TEST_P(WindowedEngine, SessionsComeBack) {
  const Model model = this->model(kWindow);
  Engine engine(*backend_, model, Plan::sketch(model.hp, 0, sketch_policy(kBudget)), kOptions);
  Sequence sequence = engine.create();
  const std::vector<Token> tokens = test::random_tokens(200, 6);
  engine.prefill(sequence, tokens);
  const std::string path = testing::TempDir() + "windows_" + GetParam() + ".session";
  const uint64_t print = session_fingerprint(1, engine.pool());
  write_session(path, print, {.parent = 0, .tokens = tokens, .clean = 200}, engine.pool(), sequence.blocks());
  Sequence again = engine.create();
  again.reserve(200);
  load_session(path, print, engine.pool(), again.blocks());
  again.append(tokens, true);
  EXPECT_EQ(test::copy(engine.decode(again, 9)), test::copy(engine.decode(sequence, 9)));
  std::remove(path.c_str());
}

INSTANTIATE_TEST_SUITE_P(Backends, WindowedEngine, testing::Values("reference", "cpu"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tidal
