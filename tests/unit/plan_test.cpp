// Plans: roles, checks, defaults.
#include "model/plan.h"

#include <gtest/gtest.h>

#include "model/model.h"
#include "support/error.h"

namespace tidal {
namespace {

using test::error_of;

Hyperparameters with_layers(int layers) {
  Hyperparameters hp;
  hp.architecture = "llama";
  hp.layers = layers;
  hp.width = 64;
  hp.heads = 4;
  hp.kv_heads = 2;
  hp.head_dim = 16;
  return hp;
}

constexpr std::string_view kLetters = "DS.C";  // Dense, Select, Sparse, Scan

/// One letter a layer.
std::string letters(const Plan& plan) {
  std::string text;
  for (const Role role : plan.roles) text += kLetters[static_cast<size_t>(role)];
  return text;
}

Plan of(const std::string& letters, const Policy& policy = default_policy(256)) {
  Plan plan;
  for (const char c : letters) plan.roles.push_back(static_cast<Role>(kLetters.find(c)));
  plan.policy = policy;
  return plan;
}

std::string check_error(const Plan& plan, int layers) {
  return error_of([&] { plan.check(with_layers(layers)); });
}

TEST(Plan, FullIsDenseEverywhere) {
  EXPECT_EQ(letters(Plan::full(5)), "DDDDD");
  EXPECT_FALSE(Plan::full(5).has_sparse());
  EXPECT_EQ(check_error(Plan::full(5), 5), "no error");
}

TEST(Plan, TidalIsThePapers) {
  const Plan plan = Plan::tidal(8, 5, default_policy(128));
  EXPECT_EQ(letters(plan), "DDS..S..");
  EXPECT_EQ(plan.count(Role::Dense), 2);
  EXPECT_EQ(plan.count(Role::Select), 2);
  EXPECT_EQ(plan.count(Role::Sparse), 4);
  EXPECT_EQ(plan.policy.budget, 128);
  EXPECT_EQ(letters(Plan::tidal(4, 3, default_policy(128))), "DDSS");
}

TEST(Plan, ReselectOutOfRange) {
  const auto tidal = [](int layers, int reselect) {
    return error_of([&] { Plan::tidal(layers, reselect, default_policy(64)); });
  };
  EXPECT_EQ(tidal(24, 2), "reselect: layer 2 is out of range, expected 3 to 23 for a model of 24 layers");
  EXPECT_EQ(tidal(24, 24), "reselect: layer 24 is out of range, expected 3 to 23 for a model of 24 layers");
  EXPECT_EQ(tidal(24, -1), "reselect: layer -1 is out of range, expected 3 to 23 for a model of 24 layers");
  EXPECT_EQ(tidal(3, 3),
            "plan: a model of 3 layers is too shallow for Dense 0 and 1, Select 2 and a reselect layer, at least 4 are "
            "needed");
}

TEST(Plan, SketchScansAllBehindTheDenseLayers) {
  const Plan plan = Plan::sketch(5, 0, sketch_policy(64));
  EXPECT_EQ(letters(plan), "CCCCC");
  EXPECT_TRUE(plan.has_sparse());
  EXPECT_TRUE(plan.sparse_at(65));
  EXPECT_FALSE(plan.sparse_at(64));
  EXPECT_EQ(plan.policy, sketch_policy(64));
  EXPECT_EQ(letters(Plan::sketch(5, 2, sketch_policy(64))), "DDCCC");
  EXPECT_EQ(letters(Plan::sketch(5, 4, sketch_policy(64))), "DDDDC");
  EXPECT_EQ(letters(Plan::sketch(1, 0, sketch_policy(64))), "C");
  for (const int dense : {-1, 5, 6}) {
    EXPECT_EQ(error_of([&] { Plan::sketch(5, dense, sketch_policy(64)); }),
              fmt::format("plan: {} Dense layers of 5, expected 0 to 4 so that one is left to scan", dense));
  }
}

TEST(Plan, SparseFromTheLargerOfBudgetAndNumberOn) {
  Plan plan = Plan::sketch(5, 0, sketch_policy(64));
  plan.full_below = 100;
  EXPECT_FALSE(plan.sparse_at(99));
  EXPECT_TRUE(plan.sparse_at(100));
  plan.full_below = 10;
  EXPECT_FALSE(plan.sparse_at(64));
  EXPECT_TRUE(plan.sparse_at(65));
  Plan full = Plan::full(5);
  full.full_below = 10;
  EXPECT_FALSE(full.sparse_at(1000));
  plan.full_below = -1;
  EXPECT_EQ(check_error(plan, 5),
            "plan: full_below is -1, expected a number of positions, or 0 for sparse decoding from the budget on");
}

TEST(Plan, CheckTakesAnyMixBehindALayerThatSelects) {
  for (const char* roles : {"CCCC", "C...", "DDC.", "C.S.", "S.C.", "DCDC"}) {
    EXPECT_EQ(check_error(of(roles), 4), "no error") << roles;
  }
  EXPECT_EQ(check_error(of(".CCC"), 4), "plan: layer 0 is Sparse, but no layer before it is Select or Scan");
  for (const int bits : {0, 3, 8}) {
    EXPECT_EQ(check_error(of("CCCC", {.sketch_bits = bits}), 4),
              fmt::format("plan: a sketch of {} bits, expected 1, 2 or 4", bits));
  }
}

TEST(Plan, CheckRefusesWhatCannotRun) {
  EXPECT_EQ(check_error(of("DDS."), 5), "plan: it has 4 layers, but the model has 5");
  EXPECT_EQ(check_error(of("D.S."), 4), "plan: layer 1 is Sparse, but no layer before it is Select or Scan");
  EXPECT_EQ(check_error(of("DDD."), 4), "plan: layer 3 is Sparse, but no layer before it is Select or Scan");
  EXPECT_EQ(check_error(of("...."), 4), "plan: layer 0 is Sparse, but no layer before it is Select or Scan");
  EXPECT_EQ(check_error(of("S..."), 4), "no error");
  EXPECT_EQ(check_error(of("DDSS"), 4), "no error");
  EXPECT_EQ(check_error(of(".."), 4), "plan: it has 2 layers, but the model has 4");
}

TEST(Plan, CheckRefusesPoliciesThatDoNotFit) {
  const auto policy = [](int budget, int sinks, int recent) {
    return check_error(of("DDS.", {.budget = budget, .sinks = sinks, .recent = recent}), 4);
  };
  EXPECT_EQ(policy(0, 0, 0), "plan: the budget is 0, expected at least 1");
  EXPECT_EQ(policy(-5, 0, 0), "plan: the budget is -5, expected at least 1");
  EXPECT_EQ(policy(8, -1, 0), "plan: -1 sinks and 0 recent positions, expected none or more");
  EXPECT_EQ(policy(8, 0, -2), "plan: 0 sinks and -2 recent positions, expected none or more");
  EXPECT_EQ(policy(8, 4, 5), "plan: 4 sinks and 5 recent positions do not fit in a budget of 8");
  // The token being decoded is always one of the recent.
  EXPECT_EQ(policy(8, 8, 0), "plan: 8 sinks and 1 recent positions do not fit in a budget of 8");
  EXPECT_EQ(policy(8, 2147483647, 2147483647),
            "plan: 2147483647 sinks and 2147483647 recent positions do not fit in a budget of 8");
  EXPECT_EQ(policy(8, 7, 0), "no error");
  EXPECT_EQ(policy(8, 4, 4), "no error");
  EXPECT_EQ(policy(1, 0, 0), "no error");
}

TEST(Plan, CheckRefusesEstimatesThatCannotBe) {
  const auto error = [](Completion completion, Policy policy = sketch_policy(64), float cap = 0) {
    policy.completion = completion;
    Hyperparameters hp;
    hp.layers = 4;
    hp.score_cap = cap;
    return test::error_of([&] { Plan::sketch(4, 0, policy).check(hp); });
  };
  for (const Completion completion : {Completion{}, {1, 1}, {4, 8}, {64, 64}}) EXPECT_EQ(error(completion), "no error");
  for (const auto [ranked, estimated] : {Completion{0, 4}, {-1, 4}, {4, 3}, {1, 65}, {65, 65}}) {
    EXPECT_EQ(error({ranked, estimated}),
              fmt::format("plan: {} budgets of positions ranked again and {} estimated, expected 1 to 64, and no fewer "
                          "estimated",
                          ranked, estimated));
  }
  Policy of_scans = sketch_policy(64);
  of_scans.completion = {4, 8};
  EXPECT_EQ(check_error(of("DDS.", of_scans), 4),
            "plan: what is not selected is estimated by Scan layers, and it has none");
  const char* const policies =
      "plan: what is not selected can be estimated with scope kv, pooling sum and without "
      "top-p only";
  Policy policy = sketch_policy(64);
  policy.top_p = 0.9;
  EXPECT_EQ(error({4, 8}, policy), policies);
  EXPECT_EQ(error({4, 8}, default_policy(64)), policies);
  EXPECT_EQ(error({4, 8}, paper_policy(64)), policies);
  EXPECT_EQ(error({4, 8}, sketch_policy(64), 30),
            "plan: what is not selected cannot be estimated in a model that caps its scores");
}

TEST(Plan, DefaultPolicyFitsEveryBudget) {
  for (int budget = 1; budget <= 300; ++budget) {
    for (const Policy& policy : {default_policy(budget), paper_policy(budget), sketch_policy(budget)}) {
      EXPECT_EQ(check_error(of("DDS.", policy), 4), "no error") << "budget " << budget;
    }
  }
  EXPECT_EQ(default_policy(256), (Policy{Scope::Shared, Pooling::Sum, 256, 4, 64}));
  EXPECT_EQ(sketch_policy(256), (Policy{Scope::Kv, Pooling::Sum, 256, 0, 0}));
  EXPECT_EQ(paper_policy(256), (Policy{Scope::Head, Pooling::Max, 256, 0, 0}));
}

TEST(Plan, ReservedPositionsNeverExceedTheBudget) {
  for (int budget = 1; budget <= 20; ++budget) {
    for (int sinks = 0; sinks <= 25; ++sinks) {
      for (int recent = 0; recent <= 25; ++recent) {
        const Reserved reserved = reserved_positions({.budget = budget, .sinks = sinks, .recent = recent});
        EXPECT_GE(reserved.recent, 1) << "the token being decoded";
        EXPECT_GE(reserved.sinks, 0);
        EXPECT_LE(reserved.sinks, sinks);
        EXPECT_LE(reserved.sinks + reserved.recent, budget);
      }
    }
  }
}

TEST(Plan, ReselectOfKnownModels) {
  const std::pair<const char*, int> measured[] = {
      {"llama-2-7b", 7}, {"llama-3-8b", 13}, {"qwen2.5-1.5b", 19}, {"qwen2.5-0.5b", 11}};
  for (const auto& [name, reselect] : measured) {
    EXPECT_EQ(default_reselect(known_shape(name)), reselect) << name;
    EXPECT_TRUE(reselect_is_measured(known_shape(name))) << name;
  }
  // A model of the same depth but another shape is another model.
  Hyperparameters other = known_shape("llama-3-8b");
  other.width = 5120;
  EXPECT_FALSE(reselect_is_measured(other));
  other = known_shape("llama-3-8b");
  other.architecture = "qwen3";
  EXPECT_FALSE(reselect_is_measured(other));
}

TEST(Plan, TheRuleFitsEveryDepth) {
  for (int layers = 4; layers <= 130; ++layers) {
    const int reselect = default_reselect(with_layers(layers));
    EXPECT_GT(reselect, 2);
    EXPECT_LT(reselect, layers);
    EXPECT_EQ(check_error(Plan::tidal(layers, reselect, default_policy(256)), layers), "no error");
  }
}

TEST(Plan, ScopeUnits) {
  EXPECT_EQ(scope_units(Scope::Head, 14, 2), 14);
  EXPECT_EQ(scope_units(Scope::Kv, 14, 2), 2);
  EXPECT_EQ(scope_units(Scope::Shared, 14, 2), 1);
}

}  // namespace
}  // namespace tidal
