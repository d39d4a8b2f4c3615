// The flags that choose a plan, the same for every command.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "model/plan.h"

namespace tidal {

/// Empty: the plan file's or the default.
struct PlanOptions {
  std::optional<std::string> budget;   ///< "256", "5%" of the context, or "5%,128": at least 128
  std::optional<std::string> policy;   ///< default or paper
  std::optional<std::string> scope;    ///< head, kv or shared
  std::optional<std::string> pooling;  ///< max or sum
  std::optional<int> sinks;
  std::optional<std::string> recent;  ///< "64", or "25%" of the budget
  std::optional<double> top_p;        ///< share of the attention mass
  std::optional<int> reselect;        ///< the middle Select layer
  std::optional<int> correct;         ///< tokens between cache corrections
  std::string file;                   ///< JSON plan; "" for none
  bool found = false;                 ///< the file was found beside the model, not asked for
};

/// --budget, --policy, --scope, --pooling, --sinks, --recent, --select-top-p, --reselect, --correct, --plan and their
/// TIDAL_* variables. `options` must outlive the parsing.
void add_plan_options(CLI::App& app, PlanOptions& options);

/// The plan that `tidal calibrate` writes for a model: MODEL.tidal.json.
std::string calibrated_plan_file(const std::string& model);
/// Takes that file as the plan when it is there and no flag says otherwise (--plan, --policy, --reselect).
void find_plan_file(PlanOptions& options, const std::string& model);

/// The tidal plan of these options. Beside a plan file a budget replaces the file's (sinks stay, recent keeps its
/// share), and so do the other flags of the policy; --policy and --reselect contradict the file. Throws Error naming
/// the flag that is wrong.
Plan make_plan(const PlanOptions& options, const Hyperparameters& hp);

/// Throws Error when a budget was asked for that `context` positions can never exceed, so that nothing would be sparse,
/// or a correction that would never come.
void check_budget(const PlanOptions& options, int context);

/// Where the middle Select layer comes from: "from PLAN.json", "given", "measured for this model" or "by rule, not
/// measured for this model".
std::string reselect_source(const PlanOptions& options, const Hyperparameters& hp);
/// The plan in one line: which layers are Dense and Select, where that comes from, and the policy.
std::string describe(const Plan& plan, const std::string& source);
/// The budget of a policy as the flag writes it: "256", "5%,128", with top-p "256 at top-p 0.95".
std::string budget_text(const Policy& policy);

}  // namespace tidal
