#include "cli/options/plan_options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "backend/sketch.h"
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

/// `usual`: default_policy() or sketch_policy().
Policy policy_from(const std::string& word, const Budget& budget, Policy (*usual)(int)) {
  if (word == "paper") {
    Policy policy = paper_policy(budget.positions);
    policy.budget_share = budget.share;
    return policy;
  }
  if (word != "default") fail("--policy: '{}' is not known, expected default or paper", word);
  Policy policy = usual(budget.positions);
  if (budget.share > 0) set_budget(policy, budget);
  return policy;
}

Completion completion_from(const std::string& word) {
  if (word == "off") return {};
  Completion completion;
  const char* const end = word.data() + word.size();
  const auto first = std::from_chars(word.data(), end, completion.ranked);
  const bool goes_on = first.ec == std::errc() && first.ptr != end && *first.ptr == ':';
  const auto second = std::from_chars(goes_on ? first.ptr + 1 : end, end, completion.estimated);
  if (second.ec != std::errc() || second.ptr != end || completion.ranked < 1 ||
      completion.estimated < completion.ranked || completion.estimated > kMostBudgets) {
    fail(
        "--complete: '{}' given, expected off, or budgets of positions that are ranked again and whose values are "
        "estimated, up to {}, like 4:8",
        word, kMostBudgets);
  }
  return completion;
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
  if (options.sketch) {
    if (!is_sketch_width(*options.sketch)) {
      fail("--sketch: {} bits given, expected 1, 2 or 4", *options.sketch);
    }
    policy.sketch_bits = *options.sketch;
  }
  if (options.complete) policy.completion = completion_from(*options.complete);
}

constexpr const char* kKinds = "full, tidal or sketch";
/// Where neither a flag nor a plan file decides.
constexpr const char* kDefaultKind = "sketch";

/// A flag that only tidal attention takes, "" for none.
const char* tidal_flag(const PlanOptions& options) {
  return options.reselect ? "--reselect" : options.policy == "paper" ? "--policy paper" : "";
}

bool completes(const PlanOptions& options) { return options.complete && *options.complete != "off"; }

/// A flag that only sketch attention takes, "" for none.
const char* sketch_flag(const PlanOptions& options) {
  return options.dense_layers ? "--dense-layers" : options.sketch ? "--sketch" : completes(options) ? "--complete" : "";
}

/// The kind of attention that the flags ask for, "" where they leave it open.
std::string asked_kind(const PlanOptions& options) {
  const std::string tidal = tidal_flag(options), sketch = sketch_flag(options);
  if (options.attention) {
    const std::string& kind = *options.attention;
    if (kind != "full" && kind != "tidal" && kind != "sketch") {
      fail("--attention: '{}' is not known, expected {}", kind, kKinds);
    }
    if (kind == "tidal" && !sketch.empty()) fail("{}: is for sketch attention, but --attention is tidal", sketch);
    if (kind == "sketch" && !tidal.empty()) fail("{}: is for tidal attention, but --attention is sketch", tidal);
    return kind;
  }
  if (!tidal.empty() && !sketch.empty()) {
    fail("{}: is for tidal attention and {} for sketch, give only one of the two", tidal, sketch);
  }
  return !tidal.empty() ? "tidal" : !sketch.empty() ? "sketch" : "";
}

/// The plan of the file, its budget set; none where it was only found and another kind of attention is asked for.
std::optional<Plan> file_plan(const PlanOptions& options, const std::string& kind, const Hyperparameters& hp) {
  if (options.file.empty()) return {};
  const char* twice = options.policy         ? "--policy"
                      : options.reselect     ? "--reselect"
                      : options.dense_layers ? "--dense-layers"
                                             : nullptr;
  if (twice) {
    if (options.found) return {};
    fail("{}: the plan of --plan has its own, give only one of the two", twice);
  }
  Plan plan = load_plan(options.file, hp);
  if (!kind.empty() && kind != kind_of(plan)) {
    if (options.found) return {};
    if (!options.attention)
      fail("{}: is for sketch attention, but {} scans no layer", sketch_flag(options), options.file);
    fail("--plan: {} is for {} attention, but --attention is {}", options.file, kind_of(plan), kind);
  }
  if (options.budget) set_budget(plan.policy, budget_from(*options.budget));
  return plan;
}

ChosenPlan tidal_plan(const PlanOptions& options, const Budget& budget, const Hyperparameters& hp) {
  const char* source = options.reselect           ? "given"
                       : reselect_is_measured(hp) ? "measured for this model"
                                                  : "by rule, not measured for this model; tidal calibrate measures it";
  return {Plan::tidal(hp, options.reselect.value_or(default_reselect(hp)),
                      policy_from(options.policy.value_or("default"), budget, default_policy)),
          source};
}

ChosenPlan sketch_plan(const PlanOptions& options, const Budget& budget, const Hyperparameters& hp) {
  const int dense = options.dense_layers.value_or(default_dense(hp)),
            layers = static_cast<int>(hp.layers_that_read_all().size());
  if (layers > 0 && (dense < 0 || dense >= layers)) {
    fail("--dense-layers: {} given, expected 0 to {} so that one of {} layers is left to scan", dense, layers - 1,
         layers);
  }
  Plan plan = Plan::sketch(hp, dense, policy_from(options.policy.value_or("default"), budget, sketch_policy));
  if (options.dense_layers) return {plan, "given"};
  const std::vector<int> reuse = default_reuse(hp);
  for (const int layer : reuse) plan.roles[layer] = Role::Sparse;
  return {plan, reuse.empty() && dense == 0 ? "default" : "measured for this model"};
}

}  // namespace

void add_plan_options(CLI::App& app, PlanOptions& options) {
  const auto add = [&](const char* name, auto& value, const char* what, const char* variable, const char* type) {
    app.add_option(name, value, what)->envname(variable)->type_name(type)->group(kGroup);
  };
  add("--budget", options.budget,
      "Positions that a Sparse or Scan layer reads: 256, 5% of the context, 5%,128 for at least 128 (default: 256)",
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
  add("--sketch", options.sketch, "Bits of a key's element in the sketch that sketch attention selects by (default: 2)",
      "TIDAL_SKETCH", "1|2|4");
  add("--complete", options.complete,
      "Estimate what sketch attention does not select: budgets of positions that are ranked again by their keys, and "
      "budgets of positions whose values are estimated one by one, like 4:8 (default: off)",
      "TIDAL_COMPLETE", "R:E|off");
  add("--dense-layers", options.dense_layers,
      "First layers that sketch attention leaves Dense (default: measured, else 0)", "TIDAL_DENSE_LAYERS", "N");
  add("--correct", options.correct,
      "Compute the K/V of sparsely decoded tokens again, densely, after every T of them (default: never)",
      "TIDAL_CORRECT", "T");
  add("--plan", options.file,
      "Roles of all layers and the policy from a JSON file (default: MODEL.tidal.json if there is one, as tidal "
      "calibrate writes it; none: no file)",
      "TIDAL_PLAN", "FILE");
}

void add_attention_option(CLI::App& app, PlanOptions& options, const char* kinds) {
  app.add_option("--attention", options.attention,
                 fmt::format("tidal: two layers select for the others; sketch: every layer selects by a sketch of its "
                             "own keys (default: what the plan file is for, else {})",
                             kDefaultKind))
      ->envname("TIDAL_ATTENTION")
      ->type_name(kinds)
      ->group(kGroup);
}

std::string calibrated_plan_file(const std::string& model) { return model + ".tidal.json"; }

void find_plan_file(PlanOptions& options, const std::string& model) {
  if (options.file == "none") {
    options.file.clear();
    return;
  }
  if (!options.file.empty() || model.empty()) return;
  const std::string file = calibrated_plan_file(model);
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return;
  options.file = file;
  options.found = true;
}

void check_kind(const PlanOptions& options) { asked_kind(options); }

FullBelow full_below_of(const Backend& backend, const Hyperparameters& hp, const EngineOptions& engine) {
  return [&backend, &hp, engine](const Plan& plan) {
    return std::min(backend.full_below(hp, plan.roles, plan.policy, engine.kv_type),
                    positions_on_device(backend, hp, plan, engine));
  };
}

ChosenPlan choose_plan(const PlanOptions& options, const Hyperparameters& hp, const FullBelow& full_below) {
  const std::string kind = asked_kind(options);
  if (kind == "full") return {Plan::full(hp.layers), "given"};
  // Nothing is left to choose where no layer reads the whole context.
  if (kind.empty() && hp.layers_that_read_all().empty()) return {Plan::full(hp.layers), "default"};
  ChosenPlan chosen;
  const std::optional<Plan> plan = file_plan(options, kind, hp);
  if (plan) {
    chosen = {*plan, (options.found ? "found in " : "from ") + options.file};
  } else {
    const Budget budget = options.budget ? budget_from(*options.budget) : Budget{};
    const std::string made = kind.empty() ? kDefaultKind : kind;
    chosen = made == "sketch" ? sketch_plan(options, budget, hp) : tidal_plan(options, budget, hp);
  }
  adjust(chosen.plan.policy, options);
  if (options.correct) {
    if (*options.correct < 1) fail("--correct: {} given, at least 1 token is needed", *options.correct);
    chosen.plan.correct = *options.correct;
  }
  // By the policy as the flags have left it. Who asks for a kind of attention gets it at every length.
  if (full_below && kind.empty() && !plan) chosen.plan.full_below = full_below(chosen.plan);
  chosen.plan.check(hp);
  return chosen;
}

void drop_sketch_flags(PlanOptions& options) {
  options.sketch = options.dense_layers = {};
  options.complete = {};
}

std::vector<ChosenPlan> choose_plans(const PlanOptions& options, const std::vector<std::string>& kinds,
                                     const Hyperparameters& hp, const FullBelow& full_below) {
  const auto listed = [&](const char* kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); };
  const std::string file_kind = options.file.empty() || options.found ? "" : kind_of(load_plan(options.file, hp));
  const auto need = [&](const std::string& what, const char* kind) {
    if (what.empty() || listed(kind) || listed("")) return;
    fail("{}: is for {} attention, which --attention does not list", what, kind);
  };
  if (listed("tidal") || listed("sketch")) {
    need(tidal_flag(options), "tidal");
    need(sketch_flag(options), "sketch");
    need(file_kind.empty() ? "" : "--plan", file_kind.c_str());
  }
  std::vector<ChosenPlan> plans;
  for (const std::string& kind : kinds) {
    PlanOptions own = options;
    if (!kind.empty()) own.attention = kind;
    if (kind == "tidal") drop_sketch_flags(own);
    if (kind == "sketch") {
      own.reselect = {};
      if (own.policy == "paper") own.policy = {};
    }
    if (!file_kind.empty() && !kind.empty() && kind != file_kind) own.file.clear();
    plans.push_back(choose_plan(own, hp, full_below));
  }
  return plans;
}

Plan make_plan(const PlanOptions& options, const Hyperparameters& hp) { return choose_plan(options, hp).plan; }

std::string kind_of(const Plan& plan) { return plan.scans() ? "sketch" : "tidal"; }

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

}  // namespace tidal
