// Plans side by side: the plan flags as lists, of which all combinations are evaluated.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/options/plan_options.h"

namespace tidal {

/// The lists as they were given: a flag may be repeated, and hold several values with commas between.
struct EvalPlanFlags {
  std::vector<std::string> attentions = {}, budgets = {}, policies = {}, scopes = {}, poolings = {}, sinks = {},
                           recents = {}, top_ps = {}, reselects = {}, sketches = {}, completions = {},
                           dense_layers = {}, corrections = {}, files = {};
};

/// The flags of add_plan_options() and --attention, as lists. `flags` must outlive the parsing.
void add_eval_plan_flags(CLI::App& app, EvalPlanFlags& flags);

struct EvalPlan {
  std::string name;    ///< of plan_name()
  std::string source;  ///< for people: the whole plan in a line
  Plan plan;
};

/// Budgets of a list: "64,256" are two; a number behind a percentage is its floor, so that "64,5%,128" are 64 and
/// "5%,128".
std::vector<std::string> budget_list(const std::vector<std::string>& given);

/// Full attention, then all combinations of the lists, then every plan file with every budget and every other flag of
/// the policy; each plan once. Every kind of --attention makes combinations of its own: --reselect and --policy paper
/// are only for tidal, --sketch and --dense-layers for sketch, and imply their kind where --attention is not given.
/// With files and nothing that asks for combinations only the files; without anything the plan beside the model, if
/// there is one, or the default. Throws Error naming the flag that is wrong.
std::vector<EvalPlan> eval_plans(const EvalPlanFlags& flags, const std::string& model, const Hyperparameters& hp);

}  // namespace tidal
