// Plans in words: names that tell plans apart, and the line that describes one.
#include "cli/options/plan_text.h"

#include <gtest/gtest.h>

#include <set>

#include "model.h"

namespace tidal {
namespace {

using test::plan_of;

TEST(PlanName, TidalPlansAreCalledAsEver) {
  const Policy usual = default_policy(256);
  EXPECT_EQ(plan_name(Plan::full(6)), "full");
  EXPECT_EQ(plan_name(plan_of("DDS.S.", usual)), "K=256, select 2+4");
  EXPECT_EQ(plan_name(plan_of("DSDS..", usual)), "K=256, select 1+3, dense 2");
  EXPECT_EQ(plan_name(plan_of("DDS...", paper_policy(32))), "K=32, select 2, paper");
}

TEST(PlanName, SketchPlans) {
  Policy policy = sketch_policy(256);
  EXPECT_EQ(plan_name(plan_of("CCCCCC", policy)), "K=256, sketch 2 bits");
  EXPECT_EQ(plan_name(plan_of("DDCCCC", policy)), "K=256, sketch 2 bits, dense 0-1");
  EXPECT_EQ(plan_name(plan_of("DCCCCD", policy)), "K=256, sketch 2 bits, dense 0+5");
  EXPECT_EQ(plan_name(plan_of("C.C.CC", policy)), "K=256, sketch 2 bits, sparse 1+3");
  EXPECT_EQ(plan_name(plan_of("DS..CC", policy)), "K=256, sketch 2 bits, dense 0, select 1, sparse 2-3");
  policy.sketch_bits = 1;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", policy)), "K=256, sketch 1 bit");
  policy.completion = {4, 8};
  EXPECT_EQ(plan_name(plan_of("CCCCCC", policy)), "K=256 completed 4:8, sketch 1 bit");
}

TEST(PlanName, ThePolicyIsComparedWithTheDefaultOfItsKind) {
  Policy policy = default_policy(64);
  EXPECT_EQ(plan_name(plan_of("CCCCCC", policy)), "K=64, sketch 2 bits, scope shared, sinks 4, recent 16");
  policy.scope = Scope::Kv;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", sketch_policy(64))), "K=64, sketch 2 bits");
  EXPECT_EQ(plan_name(plan_of("DDS...", policy)), "K=64, select 2, scope kv");
  policy.sinks = 0;
  policy.recent = 8;
  policy.pooling = Pooling::Max;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", policy)), "K=64, sketch 2 bits, pooling max, recent 8");
  Policy share = sketch_policy(64);
  share.budget_share = 0.05;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", share)), "K=5%,64, sketch 2 bits");
  share.recent = 8;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", share)), "K=5%,64, sketch 2 bits, recent 8");
  share.recent_share = 0.25;
  EXPECT_EQ(plan_name(plan_of("CCCCCC", share)), "K=5%,64, sketch 2 bits, recent 25%");
  Plan corrected = plan_of("CCCCCC", sketch_policy(64));
  corrected.correct = 16;
  EXPECT_EQ(plan_name(corrected), "K=64, sketch 2 bits, correct 16");
  corrected.full_below = 7000;
  EXPECT_EQ(plan_name(corrected), "K=64, sketch 2 bits, correct 16, full below 7000");
}

// Result files know plans by their names alone.
TEST(PlanName, NoTwoPlansShareOne) {
  constexpr int kLayers = 5, kRoles = 4;
  std::set<std::string> names;
  int plans = 0;
  for (int code = 0; code < 1024; ++code) {  // kRoles ^ kLayers
    std::string letters;
    for (int layer = 0, rest = code; layer < kLayers; ++layer, rest /= kRoles) letters += "DS.C"[rest % kRoles];
    const size_t selects = letters.find_first_of("SC");
    if (selects == std::string::npos || letters.find('.') < selects) continue;  // full, or cannot run
    if (letters.find_first_of(".C") == std::string::npos) continue;             // full attention as well
    for (const int bits : {1, 2, 4}) {
      Policy policy = sketch_policy(64);
      policy.sketch_bits = bits;
      if (bits != 2 && letters.find('C') == std::string::npos) continue;
      names.insert(plan_name(plan_of(letters, policy)));
      ++plans;
    }
  }
  EXPECT_GT(plans, 1000);
  EXPECT_EQ(static_cast<int>(names.size()), plans);
}

TEST(Describe, SaysEveryRole) {
  const Policy policy = sketch_policy(64);
  EXPECT_EQ(describe(Plan::full(6), "given"), "full attention in all layers");
  Hyperparameters windowed = test::six_layers();
  windowed.windows = {512, 512, 0, 512, 512, 0};
  EXPECT_EQ(describe(Plan::full(6), "given", windowed), "full attention, 4 of 6 layers with a window of 512");
  EXPECT_EQ(describe(plan_of("DDCDDC", sketch_policy(64)), "default", windowed),
            "sketch attention: Scan all 2 by 2 bits (default); 4 of 6 layers with a window of 512; budget 64 (0 "
            "sinks, 1 recent), scope kv, pooling sum");
  EXPECT_EQ(plan_name(plan_of("DDCDDC", sketch_policy(64)), windowed), "K=64, sketch 2 bits");
  EXPECT_EQ(plan_name(plan_of("DDDDDC", sketch_policy(64)), windowed), "K=64, sketch 2 bits, dense 2");
  EXPECT_EQ(
      describe(plan_of("DDS.S.", default_policy(64)), "given"),
      "tidal attention: Dense 0, 1; Select 2, 4 (given); Sparse the other 2; budget 64 (4 sinks, 16 recent), scope "
      "shared, pooling sum");
  EXPECT_EQ(describe(plan_of("CCCCCC", policy), "default"),
            "sketch attention: Scan all 6 by 2 bits (default); budget 64 (0 sinks, 1 recent), scope kv, pooling sum");
  EXPECT_EQ(describe(plan_of("DDCCCC", policy), "given").substr(0, 59),
            "sketch attention: Dense 0, 1; Scan the other 4 by 2 bits (g");
  EXPECT_EQ(describe(plan_of("DSCC..", policy), "from p.json").substr(0, 92),
            "sketch attention: Dense 0; Select 1; Scan 2, 3 by 2 bits (from p.json); Sparse the other 2; ");
  Plan crossing = plan_of("CCCCCC", policy);
  crossing.full_below = 7000;
  EXPECT_EQ(describe(crossing, "default"),
            "sketch attention: Scan all 6 by 2 bits (default); budget 64 (0 sinks, 1 recent), scope kv, pooling sum; "
            "full attention below 7000 positions");
}

}  // namespace
}  // namespace tidal
