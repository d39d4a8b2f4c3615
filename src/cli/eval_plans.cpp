#include "cli/eval_plans.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "core/error.h"

namespace tidal {
namespace {

std::vector<std::string> split(const std::vector<std::string>& given) {
  std::vector<std::string> parts;
  for (const std::string& text : given) {
    for (size_t at = 0; at <= text.size();) {
      const size_t comma = std::min(text.find(',', at), text.size());
      parts.push_back(text.substr(at, comma - at));
      at = comma + 1;
    }
  }
  return parts;
}

template <typename Number>
std::vector<Number> numbers(const char* flag, const std::vector<std::string>& given) {
  std::vector<Number> values;
  for (const std::string& part : split(given)) {
    Number value{};
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size()) {
      fail("{}: '{}' is not a number, expected one or several with commas between", flag, part);
    }
    values.push_back(value);
  }
  return values;
}

/// Every option with every value of a list; an empty list leaves them as they are.
template <typename Value>
void combine(std::vector<PlanOptions>& options, std::optional<Value> PlanOptions::*member,
             const std::vector<Value>& values) {
  if (values.empty()) return;
  std::vector<PlanOptions> all;
  for (const PlanOptions& option : options) {
    for (const Value& value : values) {
      all.push_back(option);
      all.back().*member = value;
    }
  }
  options = std::move(all);
}

std::string layer_text(const std::vector<int>& layers) {
  std::string text;
  for (const int layer : layers) text += (text.empty() ? "" : "+") + std::to_string(layer);
  return text;
}

/// A policy's default recent positions, as PlanOptions has them for a budget.
bool default_recent(const Policy& policy, const Policy& usual) {
  if (policy.budget_share == 0) return policy.recent_share == 0 && policy.recent == usual.recent;
  return policy.recent_share == static_cast<double>(usual.recent) / usual.budget;
}

std::string policy_text(const Policy& policy) {
  Policy paper = paper_policy(policy.budget);
  paper.budget_share = policy.budget_share;
  paper.top_p = policy.top_p;
  if (policy == paper) return ", paper";
  const Policy usual = default_policy(policy.budget);
  std::string text;
  if (policy.scope != usual.scope) text += fmt::format(", scope {}", to_string(policy.scope));
  if (policy.pooling != usual.pooling) text += fmt::format(", pooling {}", to_string(policy.pooling));
  if (policy.sinks != usual.sinks) text += fmt::format(", sinks {}", policy.sinks);
  if (!default_recent(policy, policy.budget_share > 0 ? default_policy(Policy{}.budget) : usual)) {
    text += policy.recent_share > 0 ? fmt::format(", recent {:g}%", 100 * policy.recent_share)
                                    : fmt::format(", recent {}", policy.recent);
  }
  return text;
}

}  // namespace

void add_eval_plan_flags(CLI::App& app, EvalPlanFlags& flags) {
  const auto add = [&](const char* name, std::vector<std::string>& values, const char* what, const char* variable,
                       const char* type) {
    app.add_option(name, values, what)
        ->envname(variable)
        ->type_name(type)
        ->allow_extra_args(false)
        ->group("Plans side by side (lists with commas, or repeat the flag; all combinations)");
  };
  add("--budget", flags.budgets, "Positions that a Sparse layer reads: 64,256, or 5%, or 5%,128 for at least 128",
      "TIDAL_BUDGET", "K,...");
  add("--policy", flags.policies, "default, paper", "TIDAL_POLICY", "WORD,...");
  add("--scope", flags.scopes, "head, kv, shared", "TIDAL_SCOPE", "WORD,...");
  add("--pooling", flags.poolings, "max, sum", "TIDAL_POOLING", "WORD,...");
  add("--sinks", flags.sinks, "First positions that are always read", "TIDAL_SINKS", "N,...");
  add("--recent", flags.recents, "Last positions that are always read: 64, or 25% of the budget", "TIDAL_RECENT",
      "N,...");
  add("--select-top-p", flags.top_ps, "Read no more than hold this share of the mass", "TIDAL_SELECT_TOP_P", "P,...");
  add("--reselect", flags.reselects, "The middle layer that selects", "TIDAL_RESELECT", "LAYER,...");
  add("--correct", flags.corrections, "Correct the cache after every T tokens, 0 for never", "TIDAL_CORRECT", "T,...");
  add("--plan", flags.files,
      "Plan files, each with every budget (default: MODEL.tidal.json if there is one; none: no file)", "TIDAL_PLAN",
      "FILE,...");
}

std::vector<std::string> budget_list(const std::vector<std::string>& given) {
  std::vector<std::string> budgets;
  bool floor_may_follow = false;
  for (const std::string& part : split(given)) {
    if (floor_may_follow && !part.ends_with('%')) {
      budgets.back() += "," + part;
      floor_may_follow = false;
    } else {
      budgets.push_back(part);
      floor_may_follow = part.ends_with('%');
    }
  }
  return budgets;
}

std::string plan_name(const Plan& plan) {
  if (!plan.has_sparse()) return "full";
  const std::vector<int> select = plan.layers(Role::Select), dense = plan.layers(Role::Dense);
  std::string text = fmt::format("K={}, select {}", budget_text(plan.policy), layer_text(select));
  // Layers before the first Select can be nothing but Dense.
  std::vector<int> further;
  std::copy_if(dense.begin(), dense.end(), std::back_inserter(further),
               [&](int layer) { return layer > select.front(); });
  if (!further.empty()) text += ", dense " + layer_text(further);
  text += policy_text(plan.policy);
  if (plan.correct > 0) text += fmt::format(", correct {}", plan.correct);
  return text;
}

std::vector<EvalPlan> eval_plans(const EvalPlanFlags& flags, const std::string& model, const Hyperparameters& hp) {
  const bool combinations = !flags.policies.empty() || !flags.reselects.empty();
  std::vector<PlanOptions> from_files;
  for (const std::string& file : split(flags.files)) {
    if (file != "none") from_files.emplace_back().file = file;
  }
  if (flags.files.empty() && !combinations) {
    PlanOptions found;
    find_plan_file(found, model);
    if (!found.file.empty()) from_files.push_back(found);
  }
  std::vector<PlanOptions> options;
  if (combinations || from_files.empty()) options.emplace_back();
  combine(options, &PlanOptions::policy, split(flags.policies));
  combine(options, &PlanOptions::reselect, numbers<int>("--reselect", flags.reselects));
  options.insert(options.end(), from_files.begin(), from_files.end());
  combine(options, &PlanOptions::scope, split(flags.scopes));
  combine(options, &PlanOptions::pooling, split(flags.poolings));
  combine(options, &PlanOptions::sinks, numbers<int>("--sinks", flags.sinks));
  combine(options, &PlanOptions::recent, split(flags.recents));
  combine(options, &PlanOptions::top_p, numbers<double>("--select-top-p", flags.top_ps));
  combine(options, &PlanOptions::correct, numbers<int>("--correct", flags.corrections));
  for (PlanOptions& option : options) {
    if (option.correct == 0) option.correct.reset();  // in a list 0 stands for never
  }
  combine(options, &PlanOptions::budget, budget_list(flags.budgets));

  std::vector<EvalPlan> plans = {{"full", "full attention in all layers", Plan::full(hp.layers)}};
  for (const PlanOptions& option : options) {
    const Plan plan = make_plan(option, hp);
    const std::string name = plan_name(plan);
    if (std::any_of(plans.begin(), plans.end(), [&](const EvalPlan& other) { return other.name == name; })) continue;
    plans.push_back({name, describe(plan, reselect_source(option, hp)), plan});
  }
  return plans;
}

}  // namespace tidal
