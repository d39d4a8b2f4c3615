// Plans as JSON: round trips and every way to be wrong.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/plan.h"
#include "support/error.h"

namespace tidal {
namespace {

using test::error_of;
using Json = nlohmann::ordered_json;

Hyperparameters model() {
  Hyperparameters hp;
  hp.architecture = "qwen2";
  hp.layers = 6;
  hp.width = 128;
  hp.heads = 4;
  hp.kv_heads = 2;
  hp.head_dim = 32;
  return hp;
}

Plan plan() { return Plan::tidal(6, 4, {Scope::Kv, Pooling::Max, 32, 2, 5}); }

/// The error of a plan that is right but for one change.
template <typename Change>
std::string error_after(Change&& change) {
  Json json = Json::parse(to_json(plan(), model()));
  change(json);
  return error_of([&] { plan_from_json(json.dump(), "p.json", model()); });
}

std::string error_of_text(const std::string& text) {
  return error_of([&] { plan_from_json(text, "p.json", model()); });
}

TEST(PlanJson, IsUtf8WhateverItIsAbout) {
  const std::string json = to_json(plan(), model(), "by notes\xE9.txt");
  EXPECT_EQ(Json::parse(json)["about"], "by notes\\xE9.txt");
  EXPECT_EQ(plan_from_json(json, "p.json", model()).roles, plan().roles);
}

TEST(PlanJson, RoundTrip) {
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) {
    for (const Pooling pooling : {Pooling::Max, Pooling::Sum}) {
      for (const Policy& policy : {Policy{scope, pooling, 1, 0, 0}, Policy{scope, pooling, 4096, 100, 3996}}) {
        const Plan original = Plan::tidal(6, 3, policy);
        EXPECT_EQ(plan_from_json(to_json(original, model()), "p.json", model()), original);
      }
    }
  }
  EXPECT_EQ(plan_from_json(to_json(Plan::full(6), model()), "p.json", model()), Plan::full(6));
}

TEST(PlanJson, IsReadable) {
  const Json json = Json::parse(to_json(plan(), model()));
  EXPECT_EQ(json, Json::parse(R"({"tidal_plan": 1,
      "model": {"architecture": "qwen2", "layers": 6, "width": 128, "heads": 4, "kv_heads": 2},
      "roles": {"dense": [0, 1], "select": [2, 4]},
      "policy": {"scope": "kv", "pooling": "max", "budget": 32, "sinks": 2, "recent": 5}})"));
}

TEST(PlanJson, NotJson) {
  EXPECT_EQ(error_of_text("{\"tidal_plan\": 1,"), "p.json: is not valid JSON at byte 18");
  EXPECT_EQ(error_of_text("\xff"), "p.json: is not valid JSON at byte 1");
  EXPECT_EQ(error_of_text("[]"), "p.json is not a JSON object");
  EXPECT_EQ(error_of_text(""), "p.json: is not valid JSON at byte 1");
  EXPECT_THROW(plan_from_json(std::string(100000, '['), "p.json", model()), Error);
}

TEST(PlanJson, MissingFields) {
  EXPECT_EQ(error_of_text("{}"), "p.json: field 'tidal_plan' is missing");
  EXPECT_EQ(error_after([](Json& j) { j.erase("model"); }), "p.json: field 'model' is missing");
  EXPECT_EQ(error_after([](Json& j) { j.erase("roles"); }), "p.json: field 'roles' is missing");
  EXPECT_EQ(error_after([](Json& j) { j.erase("policy"); }), "p.json: field 'policy' is missing");
  for (const char* field : {"architecture", "layers", "width"}) {
    EXPECT_EQ(error_after([&](Json& j) { j["model"].erase(field); }),
              fmt::format("p.json: model: field '{}' is missing", field));
  }
  for (const char* field : {"dense", "select"}) {
    EXPECT_EQ(error_after([&](Json& j) { j["roles"].erase(field); }),
              fmt::format("p.json: roles: field '{}' is missing", field));
  }
  for (const char* field : {"scope", "pooling", "budget", "sinks", "recent"}) {
    EXPECT_EQ(error_after([&](Json& j) { j["policy"].erase(field); }),
              fmt::format("p.json: policy: field '{}' is missing", field));
  }
}

TEST(PlanJson, UnknownFields) {
  EXPECT_EQ(error_after([](Json& j) { j["extra"] = 1; }), "p.json: field 'extra' is not known");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["skan"] = {3}; }), "p.json: roles: field 'skan' is not known");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["bugdet"] = 3; }), "p.json: policy: field 'bugdet' is not known");
}

TEST(PlanJson, WrongTypes) {
  EXPECT_EQ(error_after([](Json& j) { j["tidal_plan"] = "1"; }),
            "p.json: field 'tidal_plan' holds \"1\", expected an integer");
  EXPECT_EQ(error_after([](Json& j) { j["model"] = 3; }), "p.json: model is not a JSON object");
  EXPECT_EQ(error_after([](Json& j) { j["model"]["architecture"] = 3; }),
            "p.json: model: field 'architecture' is not a string");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["dense"] = 0; }),
            "p.json: roles: field 'dense' is not a list of layers");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["dense"] = {0.5}; }),
            "p.json: roles: field 'dense' holds 0.5, expected an integer");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["budget"] = 1e300; }),
            "p.json: policy: field 'budget' holds 1e+300, expected an integer");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["budget"] = int64_t{1} << 40; }),
            "p.json: policy: field 'budget' holds 1099511627776, expected an integer");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["budget"] = nullptr; }),
            "p.json: policy: field 'budget' holds null, expected an integer");
}

TEST(PlanJson, WrongValues) {
  EXPECT_EQ(error_after([](Json& j) { j["tidal_plan"] = 2; }), "p.json: is a plan of format 2, expected 1");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["scope"] = "all"; }),
            "p.json: scope: 'all' is not known, expected head, kv, shared");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["pooling"] = "mean"; }),
            "p.json: pooling: 'mean' is not known, expected max, sum");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["budget"] = 0; }),
            "p.json: plan: the budget is 0, expected at least 1");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["sinks"] = 30; }),
            "p.json: plan: 30 sinks and 5 recent positions do not fit in a budget of 32");
}

TEST(PlanJson, WrongRoles) {
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["select"] = {2, 6}; }), "p.json: roles: layer 6 is not one of 6");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["select"] = {-1}; }), "p.json: roles: layer -1 is not one of 6");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["select"] = {1, 2}; }), "p.json: roles: layer 1 stands there twice");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["select"] = {3}; }),
            "p.json: plan: layer 2 is Sparse, but no layer before it is Select or Scan");
  EXPECT_EQ(error_after([](Json& j) { j["roles"]["select"] = Json::array(); }),
            "p.json: plan: layer 2 is Sparse, but no layer before it is Select or Scan");
}

TEST(PlanJson, AnotherModel) {
  EXPECT_EQ(error_after([](Json& j) { j["model"]["layers"] = 24; }),
            "p.json: is a plan for qwen2 with 24 layers of width 128, but the model is qwen2 with 6 layers of width "
            "128");
  EXPECT_EQ(error_after([](Json& j) { j["model"]["architecture"] = "llama"; }),
            "p.json: is a plan for llama with 6 layers of width 128, but the model is qwen2 with 6 layers of width "
            "128");
  // A vast count must be refused before it is used as a size.
  EXPECT_THROW(plan_from_json(R"({"tidal_plan":1,"model":{"architecture":"qwen2","layers":2147483647,"width":128},
                              "roles":{"dense":[],"select":[]},"policy":{}})",
                              "p.json", model()),
               Error);
}

TEST(PlanJson, OtherHeads) {
  EXPECT_EQ(error_after([](Json& j) { j["model"]["heads"] = 8; }),
            "p.json: is a plan for 8 query and 2 KV heads, but the model has 4 and 2");
  EXPECT_EQ(error_after([](Json& j) { j["model"]["kv_heads"] = 4; }),
            "p.json: is a plan for 4 query and 4 KV heads, but the model has 4 and 2");
}

TEST(PlanJson, SharesTopPAndCorrection) {
  Plan changed = plan();
  changed.policy.pooling = Pooling::Sum;
  changed.policy.budget_share = 0.05;
  changed.policy.recent_share = 0.125;
  changed.policy.top_p = 0.9;
  changed.correct = 64;
  const std::string text = to_json(changed, model(), "by hand");
  EXPECT_EQ(plan_from_json(text, "p.json", model()), changed);
  EXPECT_EQ(Json::parse(text)["about"], "by hand");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["top_p"] = 1.5; }),
            "p.json: plan: top-p is 1.5, expected a share of the attention mass above 0, at most 1");
  EXPECT_EQ(error_after([](Json& j) { j["policy"]["budget_share"] = "5%"; }),
            "p.json: policy: field 'budget_share' holds \"5%\", expected a number");
  EXPECT_EQ(error_after([](Json& j) { j["correct"] = -1; }),
            "p.json: plan: correct is -1, expected a number of tokens, or 0 for never");
}

TEST(PlanJson, FullBelow) {
  Plan changed = plan();
  changed.full_below = 7000;
  const std::string text = to_json(changed, model());
  EXPECT_EQ(plan_from_json(text, "p.json", model()), changed);
  EXPECT_EQ(Json::parse(text)["full_below"], 7000);
  EXPECT_FALSE(Json::parse(to_json(plan(), model())).contains("full_below")) << "files are as they always were";
  EXPECT_EQ(error_after([](Json& j) { j["full_below"] = 0; }), "no error");
  EXPECT_EQ(
      error_after([](Json& j) { j["full_below"] = -1; }),
      "p.json: plan: full_below is -1, expected a number of positions, or 0 for sparse decoding from the budget on");
  EXPECT_EQ(error_after([](Json& j) { j["full_below"] = "4K"; }),
            "p.json: field 'full_below' holds \"4K\", expected an integer");
}

TEST(PlanJson, ScanLayers) {
  for (const int bits : {1, 2, 4}) {
    Plan original = Plan::sketch(6, 0, sketch_policy(64));
    original.policy.sketch_bits = bits;
    // All scan, some stay Dense, later layers use the selection of a Scan or a Select layer.
    for (const std::vector<Role>& roles :
         {std::vector<Role>(6, Role::Scan),
          {Role::Dense, Role::Dense, Role::Scan, Role::Scan, Role::Scan, Role::Scan},
          {Role::Scan, Role::Sparse, Role::Sparse, Role::Scan, Role::Dense, Role::Sparse},
          {Role::Dense, Role::Select, Role::Sparse, Role::Scan, Role::Sparse, Role::Select}}) {
      original.roles = roles;
      EXPECT_EQ(plan_from_json(to_json(original, model()), "p.json", model()), original);
    }
  }
  const Json json = Json::parse(to_json(Plan::sketch(6, 2, sketch_policy(64)), model()));
  EXPECT_EQ(json["roles"], Json::parse(R"({"dense": [0, 1], "select": [], "scan": [2, 3, 4, 5]})"));
  EXPECT_EQ(json["policy"], Json::parse(R"({"scope": "kv", "pooling": "sum", "budget": 64, "sinks": 0, "recent": 0,
                                            "sketch": 2})"));
  // Plans without one are written as they always were.
  Plan tidal = plan();
  tidal.policy.sketch_bits = 4;
  EXPECT_EQ(to_json(tidal, model()), to_json(plan(), model()));
}

TEST(PlanJson, Estimates) {
  Plan original = Plan::sketch(6, 1, sketch_policy(64));
  original.policy.completion = {4, 8};
  const Json json = Json::parse(to_json(original, model()));
  EXPECT_EQ(json["policy"]["ranked"], 4);
  EXPECT_EQ(json["policy"]["estimated"], 8);
  EXPECT_EQ(plan_from_json(json.dump(), "p.json", model()), original);
  Json wrong = json;
  wrong["policy"]["estimated"] = 2;
  EXPECT_EQ(error_of_text(wrong.dump()),
            "p.json: plan: 4 budgets of positions ranked again and 2 estimated, expected 1 "
            "to 64, and no fewer estimated");
  wrong["policy"].erase("estimated");
  EXPECT_EQ(error_of_text(wrong.dump()),
            "p.json: plan: 4 budgets of positions ranked again and 0 estimated, expected 1 "
            "to 64, and no fewer estimated");
}

TEST(PlanJson, WrongScanLayers) {
  const auto scan = [](const Json& layers) { return error_after([&](Json& j) { j["roles"]["scan"] = layers; }); };
  EXPECT_EQ(scan({3, 5}), "no error");
  EXPECT_EQ(scan({3, 3}), "p.json: roles: layer 3 stands there twice");
  EXPECT_EQ(scan({4}), "p.json: roles: layer 4 stands there twice") << "it is Select";
  EXPECT_EQ(scan({1}), "p.json: roles: layer 1 stands there twice") << "it is Dense";
  EXPECT_EQ(scan({6}), "p.json: roles: layer 6 is not one of 6");
  EXPECT_EQ(scan("all"), "p.json: roles: field 'scan' is not a list of layers");
  const auto sketch = [](const Json& bits) { return error_after([&](Json& j) { j["policy"]["sketch"] = bits; }); };
  EXPECT_EQ(sketch(4), "no error");
  for (const int bits : {0, 3, 8, -2}) {
    EXPECT_EQ(sketch(bits), fmt::format("p.json: plan: a sketch of {} bits, expected 1, 2 or 4", bits));
  }
  EXPECT_EQ(sketch("2"), "p.json: policy: field 'sketch' holds \"2\", expected an integer");
}

TEST(PlanJson, Files) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("tidal-plan-{}", ::getpid());
  std::filesystem::create_directories(folder);
  const std::string path = folder / "plan.json";
  save_plan(path, plan(), model());
  EXPECT_EQ(load_plan(path, model()), plan());
  EXPECT_EQ(error_of([&] { load_plan(folder / "none.json", model()); }),
            (folder / "none.json").string() + ": cannot be opened: No such file or directory");
  EXPECT_EQ(error_of([&] { load_plan(folder, model()); }), folder.string() + ": is a directory, expected a plan");
  EXPECT_EQ(error_of([&] { save_plan(folder / "no" / "plan.json", plan(), model()); }),
            (folder / "no" / "plan.json").string() + ": cannot be written: No such file or directory");
  if (std::filesystem::exists("/dev/full")) {
    EXPECT_EQ(error_of([&] { save_plan("/dev/full", plan(), model()); }),
              "/dev/full: cannot be written: No space left on device");
  }
  std::filesystem::remove_all(folder);
}

TEST(PlanJson, Words) {
  for (const Scope scope : {Scope::Head, Scope::Kv, Scope::Shared}) EXPECT_EQ(scope_from(to_string(scope)), scope);
  for (const Pooling pooling : {Pooling::Max, Pooling::Sum}) EXPECT_EQ(pooling_from(to_string(pooling)), pooling);
  EXPECT_EQ(error_of([] { scope_from(""); }), "scope: '' is not known, expected head, kv, shared");
  EXPECT_EQ(error_of([] { pooling_from("Max"); }), "pooling: 'Max' is not known, expected max, sum");
  EXPECT_STREQ(to_string(Role::Dense), "dense");
  EXPECT_STREQ(to_string(Role::Select), "select");
  EXPECT_STREQ(to_string(Role::Sparse), "sparse");
  EXPECT_STREQ(to_string(Role::Scan), "scan");
}

}  // namespace
}  // namespace tidal
