#include "cli/plan_options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "core/error.h"

namespace tidal {
namespace {

constexpr const char* kGroup = "Sparse attention";

int positions_from(const char* flag, std::string_view text, int least, const char* expected) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    fail("{}: '{}' given, expected {}", flag, text, expected);
  if (number < least) fail("{}: {} given, at least {} is needed", flag, number, least);
  return number;
}

/// "5%" as 0.05.
double share_from(const char* flag, std::string_view text, const char* expected) {
  double percent = 0;
  const std::string_view number = text.substr(0, text.size() - 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), percent);
  if (error != std::errc() || end != number.data() + number.size()) {
    fail("{}: '{}' given, expected {}", flag, text, expected);
  }
  if (!(percent > 0 && percent <= 100)) fail("{}: {} given, expected more than 0%, at most 100%", flag, text);
  return percent / 100;
}

struct Budget {
  int positions = Policy{}.budget;
  double share = 0;
};

/// The floor of a budget that is a share, where none is given.
constexpr int kBudgetFloor = 64;

Budget budget_from(const std::string& text) {
  constexpr const char* kExpected = "positions like 256, a share of the context like 5%, or both like 5%,128";
  const size_t comma = text.find(',');
  const std::string_view first = std::string_view(text).substr(0, comma);
  if (!first.ends_with('%')) return {positions_from("--budget", text, 1, kExpected)};
  Budget budget{kBudgetFloor, share_from("--budget", first, kExpected)};
  if (comma != std::string::npos) {
    budget.positions = positions_from("--budget", std::string_view(text).substr(comma + 1), 1, kExpected);
  }
  return budget;
}

void set_budget(Policy& policy, const Budget& budget) {
  if (policy.recent_share == 0) {
    if (budget.share > 0) {
      policy.recent_share = static_cast<double>(policy.recent) / policy.budget;
    } else {
      policy.recent = static_cast<int>(int64_t{policy.recent} * budget.positions / policy.budget);
    }
  }
  policy.budget = budget.positions;
  policy.budget_share = budget.share;
}

Policy policy_from(const std::string& word, const Budget& budget) {
  if (word == "paper") {
    Policy policy = paper_policy(budget.positions);
    policy.budget_share = budget.share;
    return policy;
  }
  if (word != "default") fail("--policy: '{}' is not known, expected default or paper", word);
  Policy policy = default_policy(budget.positions);
  if (budget.share > 0) set_budget(policy, budget);
  return policy;
}

Plan file_plan(const PlanOptions& options, const Hyperparameters& hp) {
  if (options.policy) fail("--policy: the plan of --plan has its own, give only one of the two");
  if (options.reselect) fail("--reselect: the plan of --plan has its own, give only one of the two");
  Plan plan = load_plan(options.file, hp);
  if (options.budget) set_budget(plan.policy, budget_from(*options.budget));
  return plan;
}

void adjust(Policy& policy, const PlanOptions& options) {
  if (options.scope) policy.scope = scope_from(*options.scope);
  if (options.pooling) policy.pooling = pooling_from(*options.pooling);
  if (options.sinks) {
    if (*options.sinks < 0) fail("--sinks: {} given, expected 0 or more", *options.sinks);
    policy.sinks = *options.sinks;
  }
  if (options.recent) {
    constexpr const char* kExpected = "positions like 64, or a share of the budget like 25%";
    policy.recent_share = 0;
    if (options.recent->ends_with('%')) {
      policy.recent_share = share_from("--recent", *options.recent, kExpected);
    } else {
      policy.recent = positions_from("--recent", *options.recent, 0, kExpected);
    }
  }
  if (options.top_p) {
    // Written so that NaN fails.
    if (!(*options.top_p > 0 && *options.top_p <= 1)) {
      fail("--select-top-p: {} given, expected more than 0, at most 1", *options.top_p);
    }
    policy.top_p = *options.top_p;
  }
}

// "2, 9": the layers of one role.
std::string layers_with(const Plan& plan, Role role) {
  std::string text;
  for (const int layer : plan.layers(role)) text += (text.empty() ? "" : ", ") + std::to_string(layer);
  return text.empty() ? "none" : text;
}

std::string percent(double share) { return fmt::format("{:g}%", 100 * share); }

}  // namespace

void add_plan_options(CLI::App& app, PlanOptions& options) {
  const auto add = [&](const char* name, auto& value, const char* what, const char* variable, const char* type) {
    app.add_option(name, value, what)->envname(variable)->type_name(type)->group(kGroup);
  };
  add("--budget", options.budget,
      "Positions that a Sparse layer reads: 256, 5% of the context, 5%,128 for at least 128 (default: 256)",
      "TIDAL_BUDGET", "K");
  add("--policy", options.policy, "How they are selected (default: default)", "TIDAL_POLICY", "default|paper");
  add("--scope", options.scope, "Who shares one selection (default: the policy's)", "TIDAL_SCOPE", "head|kv|shared");
  add("--pooling", options.pooling, "How the scores of heads that share become one (default: the policy's)",
      "TIDAL_POOLING", "max|sum");
  add("--sinks", options.sinks, "First positions that are always read, inside the budget (default: the policy's)",
      "TIDAL_SINKS", "N");
  add("--recent", options.recent,
      "Last positions that are always read, inside the budget, or 25% of it (default: the policy's)", "TIDAL_RECENT",
      "N");
  add("--select-top-p", options.top_p,
      "Read no more than hold this share of the attention mass, the budget at most (default: 1)", "TIDAL_SELECT_TOP_P",
      "P");
  add("--reselect", options.reselect, "The middle layer that selects (default: measured, else by rule)",
      "TIDAL_RESELECT", "LAYER");
  add("--correct", options.correct,
      "Compute the K/V of sparsely decoded tokens again, densely, after every T of them (default: never)",
      "TIDAL_CORRECT", "T");
  add("--plan", options.file,
      "Roles of all layers and the policy from a JSON file (default: MODEL.tidal.json if there is one, as tidal "
      "calibrate writes it; none: no file)",
      "TIDAL_PLAN", "FILE");
}

std::string calibrated_plan_file(const std::string& model) { return model + ".tidal.json"; }

void find_plan_file(PlanOptions& options, const std::string& model) {
  if (options.file == "none") {
    options.file.clear();
    return;
  }
  if (!options.file.empty() || options.policy || options.reselect || model.empty()) return;
  const std::string file = calibrated_plan_file(model);
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return;
  options.file = file;
  options.found = true;
}

Plan make_plan(const PlanOptions& options, const Hyperparameters& hp) {
  Plan plan;
  if (!options.file.empty()) {
    plan = file_plan(options, hp);
  } else {
    const Budget budget = options.budget ? budget_from(*options.budget) : Budget{};
    plan = Plan::tidal(hp.layers, options.reselect.value_or(default_reselect(hp)),
                       policy_from(options.policy.value_or("default"), budget));
  }
  adjust(plan.policy, options);
  if (options.correct) {
    if (*options.correct < 1) fail("--correct: {} given, at least 1 token is needed", *options.correct);
    plan.correct = *options.correct;
  }
  plan.check(hp);
  return plan;
}

void check_budget(const PlanOptions& options, int context) {
  if (options.budget) {
    const Budget budget = budget_from(*options.budget);
    if (budget.positions > context) {
      fail("--budget: {} positions are more than the context of {}, expected at most that", budget.positions, context);
    }
  }
  if (options.correct && *options.correct > context) {
    fail("--correct: {} tokens are more than the context of {}, expected at most that", *options.correct, context);
  }
}

std::string reselect_source(const PlanOptions& options, const Hyperparameters& hp) {
  if (!options.file.empty()) return (options.found ? "found in " : "from ") + options.file;
  if (options.reselect) return "given";
  return reselect_is_measured(hp) ? "measured for this model"
                                  : "by rule, not measured for this model; tidal calibrate measures it";
}

std::string budget_text(const Policy& policy) {
  std::string text = policy.budget_share > 0 ? fmt::format("{},{}", percent(policy.budget_share), policy.budget)
                                             : std::to_string(policy.budget);
  if (policy.top_p < 1) text += fmt::format(" at top-p {:g}", policy.top_p);
  return text;
}

std::string describe(const Plan& plan, const std::string& source) {
  const Policy& policy = plan.policy;
  const std::string recent =
      policy.recent_share > 0 ? percent(policy.recent_share) : std::to_string(std::max(policy.recent, 1));
  return fmt::format(
      "tidal attention: Dense {}; Select {} ({}); Sparse the other {}; budget {} ({} sinks, {} recent), "
      "scope {}, pooling {}{}",
      layers_with(plan, Role::Dense), layers_with(plan, Role::Select), source, plan.count(Role::Sparse),
      budget_text(policy), policy.sinks, recent, to_string(policy.scope), to_string(policy.pooling),
      plan.correct > 0 ? fmt::format("; corrected every {} tokens", plan.correct) : "");
}

}  // namespace tidal
