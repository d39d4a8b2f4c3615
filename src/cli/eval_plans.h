// Plans side by side: the plan flags as lists, of which all combinations are evaluated.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/plan_options.h"

namespace tidal {

/// The lists as they were given: a flag may be repeated, and hold several values with commas between.
struct EvalPlanFlags {
  std::vector<std::string> budgets, policies, scopes, poolings, sinks, recents, top_ps, reselects, corrections, files;
};

/// The flags of add_plan_options(), as lists. `flags` must outlive the parsing.
void add_eval_plan_flags(CLI::App& app, EvalPlanFlags& flags);

struct EvalPlan {
  std::string name;    ///< of plan_name()
  std::string source;  ///< for people: the whole plan in a line
  Plan plan;
};

/// What tells a plan from every other one, in few words: "full"; "K=256, select 2+9" for the default policy; otherwise
/// with "paper" or with what differs from the default policy behind it.
std::string plan_name(const Plan& plan);

/// Budgets of a list: "64,256" are two; a number behind a percentage is its floor, so that "64,5%,128" are 64 and
/// "5%,128".
std::vector<std::string> budget_list(const std::vector<std::string>& given);

/// Full attention, then all combinations of the lists, then every plan file with every budget and every other flag of
/// the policy; each plan once. With files and neither a policy nor a reselect layer only the files; without anything
/// the plan beside the model, if there is one, or the default. Throws Error naming the flag that is wrong.
std::vector<EvalPlan> eval_plans(const EvalPlanFlags& flags, const std::string& model, const Hyperparameters& hp);

}  // namespace tidal
