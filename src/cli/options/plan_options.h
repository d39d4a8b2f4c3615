// The flags that choose a plan, the same for every command.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/engine_memory.h"
#include "model/plan.h"

namespace tidal {

/// Empty: the plan file's or the default.
struct PlanOptions {
  std::optional<std::string> attention = {};  ///< full, tidal or sketch
  std::optional<std::string> budget = {};     ///< "256", "5%" of the context, or "5%,128": at least 128
  std::optional<std::string> policy = {};     ///< default or paper
  std::optional<std::string> scope = {};      ///< head, kv or shared
  std::optional<std::string> pooling = {};    ///< max or sum
  std::optional<int> sinks = {};
  std::optional<std::string> recent = {};    ///< "64", or "25%" of the budget
  std::optional<double> top_p = {};          ///< share of the attention mass
  std::optional<int> reselect = {};          ///< the middle Select layer; of tidal attention
  std::optional<int> sketch = {};            ///< bits of the sketch; of sketch attention
  std::optional<std::string> complete = {};  ///< "4:8", or "off"; of sketch attention
  std::optional<int> dense_layers = {};      ///< first layers that stay Dense; of sketch attention
  std::optional<int> correct = {};           ///< tokens between cache corrections
  std::string file = {};                     ///< JSON plan; "" for none
  bool found = false;                        ///< the file was found beside the model, not asked for
};

/// --budget, --policy, --scope, --pooling, --sinks, --recent, --select-top-p, --reselect, --sketch, --complete,
/// --dense-layers, --correct, --plan and their TIDAL_* variables. `options` must outlive the parsing.
void add_plan_options(CLI::App& app, PlanOptions& options);
/// --attention and TIDAL_ATTENTION, for commands that take one kind; `kinds` like "full|tidal|sketch".
void add_attention_option(CLI::App& app, PlanOptions& options, const char* kinds);

/// The plan that `tidal calibrate` writes for a model: MODEL.tidal.json.
std::string calibrated_plan_file(const std::string& model);
/// Takes that file as the plan when it is there and --plan names no other. choose_plan() leaves it aside where
/// --policy,
/// --reselect or --dense-layers say otherwise or another kind of attention is asked for.
void find_plan_file(PlanOptions& options, const std::string& model);

/// Takes away what is only for plans that scan.
void drop_sketch_flags(PlanOptions& options);

/// Throws Error for flags that contradict each other, as far as that can be known without a model and its plan file.
void check_kind(const PlanOptions& options);

/// A plan and where the roles of its layers come from.
struct ChosenPlan {
  Plan plan;
  std::string source;  ///< "from PLAN.json", "found in PLAN.json", "given", "measured for this model", ...
};

/// Positions from which a plan is no slower than full attention, 0 from the start.
using FullBelow = std::function<int(const Plan& plan)>;
/// As Backend::full_below() says, but never of more positions than an engine like this has room for on the device: full
/// attention would read the others from host memory at every step. Both must outlive what it returns.
FullBelow full_below_of(const Backend& backend, const Hyperparameters& hp, const EngineOptions& engine);

/// The plan of these options. Its kind of attention is --attention's, else what --reselect and --policy paper (tidal)
/// or
/// --sketch and --dense-layers (sketch) imply, else the plan file's, else tidal. A file with a Scan layer is for sketch
/// attention, any other for tidal. Beside a plan file a budget replaces the file's (sinks stay, recent keeps its
/// share), and so do the other flags of the policy; --policy, --reselect and --dense-layers contradict the file. Throws
/// Error naming the flag that is wrong.
///
/// `full_below`: of the device that it is for; Plan::full_below is set by it where nothing asks for a kind of
/// attention, no flag and no file.
ChosenPlan choose_plan(const PlanOptions& options, const Hyperparameters& hp, const FullBelow& full_below = {});
/// One for every kind of a list: full, tidal, sketch, or "" for what choose_plan() takes. Of the flags and files that
/// are only for one kind the others know nothing; throws Error where no kind of the list takes them.
std::vector<ChosenPlan> choose_plans(const PlanOptions& options, const std::vector<std::string>& kinds,
                                     const Hyperparameters& hp, const FullBelow& full_below = {});
/// choose_plan() without its source.
Plan make_plan(const PlanOptions& options, const Hyperparameters& hp);
/// Kind of attention of a plan that is not full: tidal or sketch.
std::string kind_of(const Plan& plan);

/// Throws Error when a budget was asked for that `context` positions can never exceed, so that nothing would be sparse,
/// or a correction that would never come.
void check_budget(const PlanOptions& options, int context);

}  // namespace tidal
