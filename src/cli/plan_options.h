// The flags that choose a plan, the same for every command.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "model/plan.h"

namespace tidal {

/// Empty: the plan file's or the default.
struct PlanOptions {
  std::optional<int> budget;
  std::optional<std::string> policy;  ///< default or paper
  std::optional<std::string> scope;   ///< head, kv or shared
  std::optional<int> reselect;        ///< the middle Select layer
  std::string file;                   ///< JSON plan; "" for none
};

/// --budget, --policy, --scope, --reselect, --plan and their TIDAL_* variables. `options` must outlive the parsing.
void add_plan_options(CLI::App& app, PlanOptions& options);

/// The tidal plan of these options. Beside a plan file, a budget replaces the file's (sinks stay, recent keeps its
/// share) and so does a scope; a policy or a reselect layer contradicts the file. Throws Error naming the flag that is
/// wrong.
Plan make_plan(const PlanOptions& options, const Hyperparameters& hp);

/// Throws Error when a budget was asked for that `context` positions can never exceed, so that nothing would be sparse.
void check_budget(const PlanOptions& options, int context);

/// Where the middle Select layer comes from: "from PLAN.json", "given", "measured for this model" or "by rule, not
/// measured for this model".
std::string reselect_source(const PlanOptions& options, const Hyperparameters& hp);
/// The plan in one line: which layers are Dense and Select, where that comes from, and the policy.
std::string describe(const Plan& plan, const std::string& source);

}  // namespace tidal
