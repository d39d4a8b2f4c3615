#include "cli/eval/plans.h"

#include <algorithm>
#include <charconv>

#include "cli/options/plan_text.h"
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

bool listed(const std::vector<std::string>& words, const char* word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// The kinds of attention that combinations are made of; "" for the one that choose_plan() takes. None where plan files
/// are all.
std::vector<std::string> kinds_of(const EvalPlanFlags& flags, bool files) {
  std::vector<std::string> kinds;
  for (const std::string& word : split(flags.attentions)) {
    if (word != "full" && word != "tidal" && word != "sketch") {
      fail("--attention: '{}' is not known, expected tidal, sketch or both", word);
    }
    if (word != "full" && !listed(kinds, word.c_str())) kinds.push_back(word);
  }
  if (!flags.attentions.empty()) {
    if (kinds.empty()) fail("--attention: full attention is always beside the plans, expected tidal, sketch or both");
    return kinds;
  }
  if (!flags.reselects.empty() || listed(split(flags.policies), "paper")) kinds.emplace_back("tidal");
  const bool of_sketch = !flags.sketches.empty() || !flags.completions.empty();
  if (!flags.dense_layers.empty() || (of_sketch && !files)) kinds.emplace_back("sketch");
  if (kinds.empty() && (!flags.policies.empty() || !files)) kinds.emplace_back();
  return kinds;
}

/// All combinations of one kind: of the lists that are not for both.
std::vector<PlanOptions> combinations(const EvalPlanFlags& flags, const std::string& kind, PlanOptions base) {
  if (!kind.empty()) base.attention = kind;
  std::vector<std::string> policies = split(flags.policies);
  if (kind == "sketch") std::erase(policies, "paper");
  std::vector<PlanOptions> options = {base};
  combine(options, &PlanOptions::policy, policies);
  if (kind == "tidal") combine(options, &PlanOptions::reselect, numbers<int>("--reselect", flags.reselects));
  if (kind == "sketch") {
    combine(options, &PlanOptions::dense_layers, numbers<int>("--dense-layers", flags.dense_layers));
    combine(options, &PlanOptions::sketch, numbers<int>("--sketch", flags.sketches));
    combine(options, &PlanOptions::complete, split(flags.completions));
  }
  return options;
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
  add("--attention", flags.attentions,
      "tidal, sketch, beside full attention (default: what the other lists are for, else the plan file's kind or "
      "sketch)",
      "TIDAL_ATTENTION", "WORD,...");
  add("--budget", flags.budgets,
      "Positions that a Sparse or Scan layer reads: 64,256, or 5%, or 5%,128 for at least 128", "TIDAL_BUDGET",
      "K,...");
  add("--policy", flags.policies, "default, paper", "TIDAL_POLICY", "WORD,...");
  add("--scope", flags.scopes, "head, kv, shared", "TIDAL_SCOPE", "WORD,...");
  add("--pooling", flags.poolings, "max, sum", "TIDAL_POOLING", "WORD,...");
  add("--sinks", flags.sinks, "First positions that are always read", "TIDAL_SINKS", "N,...");
  add("--recent", flags.recents, "Last positions that are always read: 64, or 25% of the budget", "TIDAL_RECENT",
      "N,...");
  add("--select-top-p", flags.top_ps, "Read no more than hold this share of the mass", "TIDAL_SELECT_TOP_P", "P,...");
  add("--reselect", flags.reselects, "Tidal attention's middle layer that selects", "TIDAL_RESELECT", "LAYER,...");
  add("--sketch", flags.sketches, "Bits of sketch attention's sketches: 1, 2, 4", "TIDAL_SKETCH", "N,...");
  add("--complete", flags.completions,
      "What sketch attention does not select is estimated: budgets ranked again by keys, budgets estimated one by one: "
      "off, 4:8",
      "TIDAL_COMPLETE", "R:E,...");
  add("--dense-layers", flags.dense_layers, "First layers that sketch attention leaves Dense", "TIDAL_DENSE_LAYERS",
      "N,...");
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

std::vector<EvalPlan> eval_plans(const EvalPlanFlags& flags, const std::string& model, const Hyperparameters& hp) {
  std::vector<std::string> files = split(flags.files);
  std::erase(files, "none");
  const std::vector<std::string> kinds = kinds_of(flags, !files.empty());
  PlanOptions base;
  if (flags.files.empty()) find_plan_file(base, model);
  std::vector<PlanOptions> options;
  for (const std::string& kind : kinds) {
    const std::vector<PlanOptions> more = combinations(flags, kind, base);
    options.insert(options.end(), more.begin(), more.end());
  }
  bool scans = listed(kinds, "sketch");
  for (const std::string& file : files) {
    std::vector<PlanOptions> more(1);
    more[0].file = file;
    if (kind_of(load_plan(file, hp)) == "sketch") {
      scans = true;
      combine(more, &PlanOptions::sketch, numbers<int>("--sketch", flags.sketches));
      combine(more, &PlanOptions::complete, split(flags.completions));
    }
    options.insert(options.end(), more.begin(), more.end());
  }
  const auto need = [](bool given, const char* flag, bool kind, const char* name) {
    if (given && !kind) fail("{}: is for {} attention, which none of the plans is", flag, name);
  };
  need(!flags.reselects.empty(), "--reselect", listed(kinds, "tidal"), "tidal");
  need(!flags.dense_layers.empty(), "--dense-layers", listed(kinds, "sketch"), "sketch");
  need(!flags.sketches.empty(), "--sketch", scans, "sketch");
  need(!flags.completions.empty(), "--complete", scans, "sketch");
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
    const auto [plan, source] = choose_plan(option, hp);
    const std::string name = plan_name(plan, hp);
    if (std::any_of(plans.begin(), plans.end(), [&](const EvalPlan& other) { return other.name == name; })) continue;
    plans.push_back({name, describe(plan, source, hp), plan});
  }
  return plans;
}

}  // namespace tidal
