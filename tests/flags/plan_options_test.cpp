// What plan the flags make: kinds of attention, plan files, contradictions.
#include "cli/options/plan_options.h"

#include <gtest/gtest.h>

#include "cli/options/plan_text.h"
#include "model.h"
#include "model/model.h"
#include "support/error.h"

namespace tidal {
namespace {

using test::error_of;
using test::plan_of;
using test::PlanFolder;
using test::six_layers;

std::string name(const PlanOptions& options) { return plan_name(make_plan(options, six_layers())); }
std::string error(const PlanOptions& options) {
  return error_of([&] { make_plan(options, six_layers()); });
}

TEST(ChoosePlan, WithoutFlagsSketch) {
  const ChosenPlan chosen = choose_plan({}, six_layers());
  EXPECT_EQ(chosen.plan, Plan::sketch(6, 0, sketch_policy(256)));
  EXPECT_EQ(chosen.source, "default");
  EXPECT_EQ(kind_of(chosen.plan), "sketch");
}

TEST(ChoosePlan, LayersThatHadBetterStayDenseDoSo) {
  const Hyperparameters gemma = known_shape("gemma3-270m");
  EXPECT_EQ(plan_name(choose_plan({}, gemma).plan, gemma), "K=256, sketch 2 bits, dense 5");
  EXPECT_EQ(plan_name(choose_plan({.dense_layers = 0}, gemma).plan, gemma), "K=256, sketch 2 bits");
  EXPECT_EQ(choose_plan({}, gemma).source, "measured for this model");
  EXPECT_FALSE(reselect_is_measured(gemma));
}

TEST(ChoosePlan, LayersThatMayReuseASelectionDoSo) {
  Hyperparameters qwen;
  qwen.architecture = "qwen2";
  qwen.layers = 24;
  qwen.width = 896;
  qwen.kv_heads = 2;
  const ChosenPlan chosen = choose_plan({.attention = "sketch"}, qwen);
  EXPECT_EQ(plan_name(chosen.plan), "K=256, sketch 2 bits, sparse 1+5-6+8+14+18-20");
  EXPECT_EQ(chosen.source, "measured for this model");
  EXPECT_EQ(plan_name(choose_plan({.dense_layers = 0}, qwen).plan), "K=256, sketch 2 bits");
  EXPECT_EQ(plan_name(choose_plan({.dense_layers = 2}, qwen).plan), "K=256, sketch 2 bits, dense 0-1");
}

TEST(ChoosePlan, TidalPlansSayWhereTheirLayersComeFrom) {
  const ChosenPlan chosen = choose_plan({.attention = "tidal"}, six_layers());
  EXPECT_EQ(chosen.plan, Plan::tidal(6, default_reselect(six_layers()), default_policy(256)));
  EXPECT_EQ(chosen.source, "by rule, not measured for this model; tidal calibrate measures it");
  EXPECT_EQ(kind_of(chosen.plan), "tidal");
}

TEST(ChoosePlan, AKindOrFlagsThatImplyOne) {
  EXPECT_EQ(name({.attention = "full"}), "full");
  EXPECT_EQ(name({.attention = "full", .reselect = 4}), "full");
  EXPECT_EQ(name({.attention = "tidal"}), "K=256, select 2+3");
  EXPECT_EQ(name({.reselect = 4}), "K=256, select 2+4");
  EXPECT_EQ(choose_plan({.attention = "sketch"}, six_layers()).plan, Plan::sketch(6, 0, sketch_policy(256)));
  EXPECT_EQ(name({.sketch = 4}), "K=256, sketch 4 bits");
  EXPECT_EQ(name({.budget = "64", .dense_layers = 2}), "K=64, sketch 2 bits, dense 0-1");
  EXPECT_EQ(name({.attention = "sketch", .policy = "default"}), "K=256, sketch 2 bits");
  EXPECT_EQ(choose_plan({.dense_layers = 0}, six_layers()).source, "given");
}

TEST(ChoosePlan, FlagsOfThePolicyAreForBothKinds) {
  const PlanOptions options{.attention = "sketch",
                            .budget = "5%,128",
                            .scope = "head",
                            .pooling = "max",
                            .sinks = 1,
                            .recent = "10%",
                            .sketch = 1,
                            .correct = 32};
  const Plan plan = make_plan(options, six_layers());
  Policy expected{.scope = Scope::Head, .pooling = Pooling::Max, .budget = 128, .sinks = 1};
  expected.recent = plan.policy.recent;  // of no account beside its share
  expected.budget_share = .05;
  expected.recent_share = .1;
  expected.sketch_bits = 1;
  EXPECT_EQ(plan.policy, expected);
  EXPECT_EQ(plan.correct, 32);
  EXPECT_EQ(make_plan({.attention = "sketch", .top_p = .9}, six_layers()).policy.top_p, .9);
}

TEST(ChoosePlan, Contradictions) {
  EXPECT_EQ(error({.attention = "half"}), "--attention: 'half' is not known, expected full, tidal or sketch");
  EXPECT_EQ(error({.attention = ""}), "--attention: '' is not known, expected full, tidal or sketch");
  EXPECT_EQ(error({.attention = "tidal", .sketch = 2}), "--sketch: is for sketch attention, but --attention is tidal");
  EXPECT_EQ(error({.attention = "tidal", .dense_layers = 0}),
            "--dense-layers: is for sketch attention, but --attention is tidal");
  EXPECT_EQ(error({.attention = "sketch", .reselect = 4}),
            "--reselect: is for tidal attention, but --attention is sketch");
  EXPECT_EQ(error({.attention = "sketch", .policy = "paper"}),
            "--policy paper: is for tidal attention, but --attention is sketch");
  EXPECT_EQ(error({.reselect = 4, .sketch = 2}),
            "--reselect: is for tidal attention and --sketch for sketch, give only one of the two");
  for (const int bits : {0, 3, 8, -1}) {
    EXPECT_EQ(error({.sketch = bits}), fmt::format("--sketch: {} bits given, expected 1, 2 or 4", bits));
  }
  for (const int dense : {-1, 6}) {
    EXPECT_EQ(error({.dense_layers = dense}),
              fmt::format("--dense-layers: {} given, expected 0 to 5 so that one of 6 layers is left to scan", dense));
  }
}

TEST(ChoosePlan, AFileDecides) {
  const PlanFolder folder;
  const std::string tidal = folder.save("tidal.json", plan_of("DDS..S", default_policy(128)));
  const std::string scan = folder.save("scan.json", plan_of("DCC.C.", sketch_policy(128)));
  EXPECT_EQ(name({.file = tidal}), "K=128, select 2+5");
  EXPECT_EQ(name({.file = scan}), "K=128, sketch 2 bits, dense 0, sparse 3+5");
  EXPECT_EQ(name({.attention = "tidal", .file = tidal}), "K=128, select 2+5");
  EXPECT_EQ(name({.attention = "sketch", .budget = "64", .file = scan}), "K=64, sketch 2 bits, dense 0, sparse 3+5");
  EXPECT_EQ(name({.sketch = 4, .file = scan}), "K=128, sketch 4 bits, dense 0, sparse 3+5");
  EXPECT_EQ(choose_plan({.file = scan}, six_layers()).source, "from " + scan);
  EXPECT_EQ(error({.attention = "tidal", .file = scan}),
            "--plan: " + scan + " is for sketch attention, but --attention is tidal");
  EXPECT_EQ(error({.attention = "sketch", .file = tidal}),
            "--plan: " + tidal + " is for tidal attention, but --attention is sketch");
  EXPECT_EQ(error({.sketch = 4, .file = tidal}), "--sketch: is for sketch attention, but " + tidal + " scans no layer");
  EXPECT_EQ(error({.dense_layers = 1, .file = scan}),
            "--dense-layers: the plan of --plan has its own, give only one of the two");
  EXPECT_EQ(error({.reselect = 3, .file = tidal}),
            "--reselect: the plan of --plan has its own, give only one of the two");
}

TEST(ChoosePlan, AFileThatIsOnlyFoundGivesWay) {
  const PlanFolder folder;
  const std::string model = folder.path("model.gguf");
  PlanOptions found;
  find_plan_file(found, model);
  EXPECT_EQ(found.file, "");
  folder.save("model.gguf.tidal.json", plan_of("DCC.C.", sketch_policy(128)));
  find_plan_file(found, model);
  EXPECT_EQ(found.file, model + ".tidal.json");
  const std::string from_file = "K=128, sketch 2 bits, dense 0, sparse 3+5";
  const auto with = [&](const PlanOptions& flags) {
    PlanOptions options = flags;
    find_plan_file(options, model);
    return name(options);
  };
  EXPECT_EQ(with({}), from_file);
  EXPECT_EQ(choose_plan(found, six_layers()).source, "found in " + model + ".tidal.json");
  EXPECT_EQ(with({.attention = "sketch"}), from_file);
  EXPECT_EQ(with({.sketch = 1}), "K=128, sketch 1 bit, dense 0, sparse 3+5");
  EXPECT_EQ(with({.attention = "tidal"}), "K=256, select 2+3");
  EXPECT_EQ(with({.reselect = 4}), "K=256, select 2+4");
  EXPECT_EQ(with({.policy = "default"}), "K=256, sketch 2 bits");
  EXPECT_EQ(with({.dense_layers = 2}), "K=256, sketch 2 bits, dense 0-1");
  EXPECT_EQ(with({.attention = "full"}), "full");
  EXPECT_EQ(with({.file = "none"}), "K=256, sketch 2 bits");
  folder.save("model.gguf.tidal.json", plan_of("DDS..S", default_policy(128)));
  EXPECT_EQ(with({}), "K=128, select 2+5");
  EXPECT_EQ(with({.attention = "sketch"}), "K=256, sketch 2 bits");
  EXPECT_EQ(with({.sketch = 4}), "K=256, sketch 4 bits");
}

std::vector<std::string> names(const PlanOptions& options, const std::vector<std::string>& kinds) {
  std::vector<std::string> names;
  for (const ChosenPlan& chosen : choose_plans(options, kinds, six_layers())) names.push_back(plan_name(chosen.plan));
  return names;
}

TEST(ChoosePlans, EveryKindTakesItsOwnFlags) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({.budget = "64", .reselect = 4, .sketch = 1, .dense_layers = 1}, {"full", "sketch", "tidal"}),
            (Names{"full", "K=64, sketch 1 bit, dense 0", "K=64, select 2+4"}));
  EXPECT_EQ(names({.policy = "paper"}, {"tidal", "sketch"}),
            (Names{"K=256, select 2+3, paper", "K=256, sketch 2 bits"}));
  EXPECT_EQ(names({.sketch = 1}, {"", "tidal"}), (Names{"K=256, sketch 1 bit", "K=256, select 2+3"}));
  EXPECT_EQ(names({.reselect = 4}, {"full"}), Names{"full"});
  const PlanFolder folder;
  const std::string scan = folder.save("scan.json", plan_of("DCC.C.", sketch_policy(128)));
  EXPECT_EQ(names({.file = scan}, {"full", "tidal", "sketch", ""}),
            (Names{"full", "K=256, select 2+3", "K=128, sketch 2 bits, dense 0, sparse 3+5",
                   "K=128, sketch 2 bits, dense 0, sparse 3+5"}));
}

TEST(ChoosePlans, FlagsThatNoKindTakes) {
  const auto error = [](const PlanOptions& options, const std::vector<std::string>& kinds) {
    return error_of([&] { choose_plans(options, kinds, six_layers()); });
  };
  EXPECT_EQ(error({.sketch = 1}, {"full", "tidal"}),
            "--sketch: is for sketch attention, which --attention does not list");
  EXPECT_EQ(error({.policy = "paper"}, {"full", "sketch"}),
            "--policy paper: is for tidal attention, which --attention does not list");
  const PlanFolder folder;
  const std::string scan = folder.save("scan.json", plan_of("DCC.C.", sketch_policy(128)));
  EXPECT_EQ(error({.file = scan}, {"tidal"}), "--plan: is for sketch attention, which --attention does not list");
}

}  // namespace
}  // namespace tidal
