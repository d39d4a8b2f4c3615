// Lists of plan flags: which combinations they make.
#include "cli/eval/plans.h"

#include <gtest/gtest.h>

#include "model.h"
#include "support/error.h"

namespace tidal {
namespace {

using test::error_of;
using test::plan_of;
using test::PlanFolder;
using test::six_layers;
using Names = std::vector<std::string>;

Names names(const EvalPlanFlags& flags, const std::string& model = "none.gguf") {
  Names names;
  for (const EvalPlan& plan : eval_plans(flags, model, six_layers())) names.push_back(plan.name);
  EXPECT_EQ(names.at(0), "full");
  names.erase(names.begin());
  return names;
}

std::string error(const EvalPlanFlags& flags) {
  return error_of([&] { eval_plans(flags, "none.gguf", six_layers()); });
}

TEST(EvalPlans, WithoutListsTheDefault) { EXPECT_EQ(names({}), Names{"K=256, sketch 2 bits"}); }

TEST(EvalPlans, EveryKindCombinesItsOwnLists) {
  EXPECT_EQ(names({.attentions = {"tidal,sketch"}, .budgets = {"64", "256"}}),
            (Names{"K=64, select 2+3", "K=256, select 2+3", "K=64, sketch 2 bits", "K=256, sketch 2 bits"}));
  EXPECT_EQ(names({.attentions = {"sketch", "full"}, .sketches = {"1,4"}, .dense_layers = {"0,2"}}),
            (Names{"K=256, sketch 1 bit", "K=256, sketch 4 bits", "K=256, sketch 1 bit, dense 0-1",
                   "K=256, sketch 4 bits, dense 0-1"}));
  EXPECT_EQ(
      names({.attentions = {"sketch,tidal"}, .policies = {"default,paper"}, .scopes = {"head"}, .reselects = {"4,5"}}),
      (Names{"K=256, sketch 2 bits, scope head", "K=256, select 2+4, scope head", "K=256, select 2+5, scope head",
             "K=256, select 2+4, paper", "K=256, select 2+5, paper"}));
}

TEST(EvalPlans, ListsImplyTheirKinds) {
  EXPECT_EQ(names({.sketches = {"1"}}), Names{"K=256, sketch 1 bit"});
  EXPECT_EQ(names({.dense_layers = {"1"}}), Names{"K=256, sketch 2 bits, dense 0"});
  EXPECT_EQ(names({.reselects = {"4"}, .sketches = {"1"}}), (Names{"K=256, select 2+4", "K=256, sketch 1 bit"}));
  EXPECT_EQ(names({.policies = {"default"}}), Names{"K=256, sketch 2 bits"});
}

TEST(EvalPlans, FilesAndCombinations) {
  const PlanFolder folder;
  const std::string tidal = folder.save("tidal.json", plan_of("DDS..S", default_policy(128)));
  const std::string scan = folder.save("scan.json", plan_of("DCC.C.", sketch_policy(128)));
  EXPECT_EQ(names({.files = {tidal + "," + scan}}),
            (Names{"K=128, select 2+5", "K=128, sketch 2 bits, dense 0, sparse 3+5"}));
  // The bits are for files that scan, and ask for no other plan beside them.
  EXPECT_EQ(names({.sketches = {"1,2"}, .files = {tidal, scan}}),
            (Names{"K=128, select 2+5", "K=128, sketch 1 bit, dense 0, sparse 3+5",
                   "K=128, sketch 2 bits, dense 0, sparse 3+5"}));
  EXPECT_EQ(names({.attentions = {"sketch"}, .files = {tidal}}), (Names{"K=256, sketch 2 bits", "K=128, select 2+5"}));
  EXPECT_EQ(names({.reselects = {"4"}, .files = {scan}}),
            (Names{"K=256, select 2+4", "K=128, sketch 2 bits, dense 0, sparse 3+5"}));
}

TEST(EvalPlans, AFoundFileIsForItsKind) {
  const PlanFolder folder;
  folder.save("m.gguf.tidal.json", plan_of("DCC.C.", sketch_policy(128)));
  const std::string model = folder.path("m.gguf"), found = "K=128, sketch 2 bits, dense 0, sparse 3+5";
  EXPECT_EQ(names({}, model), Names{found});
  EXPECT_EQ(names({.attentions = {"tidal,sketch"}}, model), (Names{"K=256, select 2+3", found}));
  EXPECT_EQ(names({.dense_layers = {"0"}}, model), Names{"K=256, sketch 2 bits"});
  EXPECT_EQ(names({.files = {"none"}}, model), Names{"K=256, sketch 2 bits"});
}

TEST(EvalPlans, Refusals) {
  EXPECT_EQ(error({.attentions = {"half"}}), "--attention: 'half' is not known, expected tidal, sketch or both");
  EXPECT_EQ(error({.attentions = {"full"}}),
            "--attention: full attention is always beside the plans, expected tidal, sketch or both");
  EXPECT_EQ(error({.attentions = {"sketch"}, .reselects = {"4"}}),
            "--reselect: is for tidal attention, which none of the plans is");
  EXPECT_EQ(error({.attentions = {"tidal"}, .sketches = {"2"}}),
            "--sketch: is for sketch attention, which none of the plans is");
  EXPECT_EQ(error({.attentions = {"tidal"}, .dense_layers = {"2"}}),
            "--dense-layers: is for sketch attention, which none of the plans is");
  EXPECT_EQ(error({.sketches = {"3"}}), "--sketch: 3 bits given, expected 1, 2 or 4");
  EXPECT_EQ(error({.sketches = {"x"}}), "--sketch: 'x' is not a number, expected one or several with commas between");
}

}  // namespace
}  // namespace tidal
