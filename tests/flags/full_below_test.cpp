// Who gets full attention below a number of positions: those on a device that has one, who ask for no kind of
// attention.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "cli/bench/options.h"
#include "cli/options/plan_options.h"
#include "model.h"

namespace tidal {
namespace {

using test::plan_of;
using test::PlanFolder;
using test::six_layers;

/// A device's: 1000 positions and the budget.
int number_of(const Plan& plan) { return 1000 + plan.policy.budget; }

int chosen(const PlanOptions& options) { return choose_plan(options, six_layers(), number_of).plan.full_below; }

TEST(FullBelow, IsTheDefaultsAlone) {
  EXPECT_EQ(chosen({}), 1256);
  EXPECT_EQ(chosen({.budget = "64"}), 1064) << "by the policy that the flags make";
  EXPECT_EQ(chosen({.scope = "head", .pooling = "max", .sinks = 1, .recent = "4", .correct = 8}), 1256);
  EXPECT_EQ(chosen({.top_p = .9}), 1256);
  EXPECT_EQ(chosen({.policy = "default"}), 1256);
  const Plan plan = choose_plan({}, six_layers(), number_of).plan;
  Plan without = plan;
  without.full_below = 0;
  EXPECT_EQ(without, choose_plan({}, six_layers()).plan) << "nothing else changes";
}

TEST(FullBelow, NotWhereAKindIsAskedFor) {
  for (const char* kind : {"full", "tidal", "sketch"}) EXPECT_EQ(chosen({.attention = kind}), 0) << kind;
  EXPECT_EQ(chosen({.sketch = 2}), 0);
  EXPECT_EQ(chosen({.dense_layers = 0}), 0);
  EXPECT_EQ(chosen({.reselect = 3}), 0);
  EXPECT_EQ(chosen({.policy = "paper"}), 0);
}

TEST(FullBelow, APlanFileMeansWhatItSays) {
  const PlanFolder folder;
  Plan plan = plan_of("DCC.C.", sketch_policy(128));
  EXPECT_EQ(chosen({.file = folder.save("without.json", plan)}), 0);
  plan.full_below = 500;
  const std::string file = folder.save("with.json", plan);
  EXPECT_EQ(chosen({.file = file}), 500);
  EXPECT_EQ(choose_plan({.file = file}, six_layers()).plan.full_below, 500) << "on every device";
  // A file that was found and gives way leaves the default.
  EXPECT_EQ(chosen({.policy = "default", .file = file, .found = true}), 1256);
}

TEST(FullBelow, NotOnDevicesWithoutOne) {
  EXPECT_EQ(choose_plan({}, six_layers()).plan.full_below, 0);
  EXPECT_EQ(choose_plan({}, six_layers(), [](const Plan&) { return 0; }).plan.full_below, 0);
  const auto cpu = make_backend("cpu", 1), reference = make_backend("reference", 1);
  const Hyperparameters hp = six_layers();
  EXPECT_EQ(choose_plan({}, hp, full_below_of(*cpu, hp, {})).plan.full_below, 0);
  EXPECT_EQ(choose_plan({}, hp, full_below_of(*reference, hp, {})).plan.full_below, 0);
}

TEST(FullBelow, OfAListTheKindThatIsLeftOpen) {
  std::vector<int> numbers;
  for (const ChosenPlan& plan : choose_plans({}, {"full", "", "sketch", "tidal"}, six_layers(), number_of)) {
    numbers.push_back(plan.plan.full_below);
  }
  EXPECT_EQ(numbers, (std::vector<int>{0, 1256, 0, 0}));
}

std::string listed(const std::optional<std::string>& words, const PlanOptions& options, const FullBelow& full_below) {
  std::string text;
  for (const BenchPlan& plan : bench_plans(words, options, six_layers(), full_below)) {
    text += fmt::format("{} {}{};", plan.attention, plan.plan.full_below, plan.exact ? " drafts" : "");
  }
  return text;
}

TEST(FullBelow, WhatBenchLists) {
  EXPECT_EQ(listed({}, {}, number_of), "full 0;sketch 0;default 1256;");
  EXPECT_EQ(listed({}, {}, {}), "full 0;sketch 0;") << "the default is sketch attention";
  EXPECT_EQ(listed({}, {.sketch = 4}, number_of), "full 0;sketch 0;");
  EXPECT_EQ(listed({}, {.reselect = 4}, number_of), "full 0;tidal 0;");
  EXPECT_EQ(listed("default", {}, number_of), "default 1256;");
  EXPECT_EQ(listed("default", {}, {}), "default 0;");
  EXPECT_EQ(listed("exact,exact-sketch", {}, number_of), "exact 1256 drafts;exact-sketch 0 drafts;");
}

}  // namespace
}  // namespace tidal
