#include "cli/plan_options.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {
namespace {

void need_positive(const std::optional<int>& number, const char* flag) {
  if (number && *number < 1) fail("{}: {} given, at least 1 is needed", flag, *number);
}

Policy policy_from(const std::string& word, int budget) {
  if (word == "default") return default_policy(budget);
  if (word == "paper") return paper_policy(budget);
  fail("--policy: '{}' is not known, expected default or paper", word);
}

Plan file_plan(const PlanOptions& options, const Hyperparameters& hp) {
  if (options.policy) fail("--policy: the plan of --plan has its own, give only one of the two");
  if (options.reselect) fail("--reselect: the plan of --plan has its own, give only one of the two");
  Plan plan = load_plan(options.file, hp);
  if (options.budget) {
    Policy& policy = plan.policy;
    policy.recent = static_cast<int>(int64_t{policy.recent} * *options.budget / policy.budget);
    policy.budget = *options.budget;
  }
  return plan;
}

// "2, 9": the layers of one role.
std::string layers_with(const Plan& plan, Role role) {
  std::string text;
  for (size_t l = 0; l < plan.roles.size(); ++l) {
    if (plan.roles[l] == role) text += (text.empty() ? "" : ", ") + std::to_string(l);
  }
  return text.empty() ? "none" : text;
}

}  // namespace

void add_plan_options(CLI::App& app, PlanOptions& options) {
  const char* group = "Sparse attention";
  app.add_option("--budget", options.budget, "Positions that a Sparse layer reads (default: 256)")
      ->envname("TIDAL_BUDGET")
      ->type_name("K")
      ->group(group);
  app.add_option("--policy", options.policy, "How they are selected (default: default)")
      ->envname("TIDAL_POLICY")
      ->type_name("default|paper")
      ->group(group);
  app.add_option("--scope", options.scope, "Who shares one selection (default: the policy's)")
      ->envname("TIDAL_SCOPE")
      ->type_name("head|kv|shared")
      ->group(group);
  app.add_option("--reselect", options.reselect, "The middle layer that selects (default: measured, else by rule)")
      ->envname("TIDAL_RESELECT")
      ->type_name("LAYER")
      ->group(group);
  app.add_option("--plan", options.file, "Roles of all layers and the policy from a JSON file")
      ->envname("TIDAL_PLAN")
      ->type_name("FILE")
      ->group(group);
}

Plan make_plan(const PlanOptions& options, const Hyperparameters& hp) {
  need_positive(options.budget, "--budget");
  Plan plan;
  if (!options.file.empty()) {
    plan = file_plan(options, hp);
  } else {
    const Policy policy = policy_from(options.policy.value_or("default"), options.budget.value_or(Policy{}.budget));
    plan = Plan::tidal(hp.layers, options.reselect.value_or(default_reselect(hp)), policy);
  }
  if (options.scope) plan.policy.scope = scope_from(*options.scope);
  plan.check(hp);
  return plan;
}

void check_budget(const PlanOptions& options, int context) {
  need_positive(options.budget, "--budget");
  if (options.budget && *options.budget > context) {
    fail("--budget: {} positions are more than the context of {}, expected at most that", *options.budget, context);
  }
}

std::string reselect_source(const PlanOptions& options, const Hyperparameters& hp) {
  if (!options.file.empty()) return "from " + options.file;
  if (options.reselect) return "given";
  return reselect_is_measured(hp) ? "measured for this model" : "by rule, not measured for this model";
}

std::string describe(const Plan& plan, const std::string& source) {
  const Policy& policy = plan.policy;
  return fmt::format(
      "tidal attention: Dense {}; Select {} ({}); Sparse the other {}; budget {} ({} sinks, {} recent), "
      "scope {}, pooling {}",
      layers_with(plan, Role::Dense), layers_with(plan, Role::Select), source, plan.count(Role::Sparse), policy.budget,
      policy.sinks, std::max(policy.recent, 1), to_string(policy.scope), to_string(policy.pooling));
}

}  // namespace tidal
