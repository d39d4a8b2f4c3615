#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "cli/console/output.h"
#include "cli/eval/commands.h"
#include "cli/eval/places.h"
#include "core/error.h"
#include "eval/next_token.h"
#include "eval/pages.h"
#include "eval/prompt_cache.h"
#include "eval/teacher_forced.h"
#include "eval/text_scores.h"
#include "report/line_chart.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct PplFlags {
  EvalFlags eval;
  PlaceFlags places;
  std::vector<std::string> pages;
};

/// A plan as it is, or by pages in place of its sketches.
struct PplPlan {
  EvalPlan plan;
  std::optional<PageRule> pages;
};

/// The session's plans, full attention first, and those that scan once more for every rule.
std::vector<PplPlan> ppl_plans(EvalSession& session, const PplFlags& flags) {
  std::vector<PplPlan> plans;
  if (!flags.pages.empty()) check_pages(session.backend());  // before anything is computed
  for (const EvalPlan& plan : session.plans()) plans.push_back({plan, {}});
  for (const std::string& word : flags.pages) {
    const PageRule rule = page_rule_from(word);
    bool any = false;
    for (const EvalPlan& plan : session.plans()) {
      if (!plan.plan.scans() || plan.plan.count(Role::Select) > 0) continue;
      any = true;
      const std::string name = plan.name + ", " + to_string(rule);
      const auto same = [&](const PplPlan& other) { return other.plan.name == name; };
      if (std::any_of(plans.begin(), plans.end(), same)) continue;  // the rule stands there twice
      plans.push_back({plan, rule});
      plans.back().plan.name = name;
    }
    if (!any) fail("--pages: they take the place of sketches, which none of the plans has");
  }
  return plans;
}

constexpr int kTogether = 32;  // plans whose caches are kept at once

Json values_of(const TextScore& score) {
  return {{"nll", score.nll},
          {"perplexity", std::exp(score.nll)},
          {"kl", score.kl},
          {"kl_error", score.kl_error},
          {"same", score.same},
          {"bytes_per_token", score.bytes},
          {"kl_parts", score.kl_parts}};
}

/// Plans without a row at this place. The first of them is full attention if its row is missing.
std::vector<const PplPlan*> missing_plans(const EvalSession& session, const std::vector<PplPlan>& plans,
                                          int64_t first) {
  std::vector<const PplPlan*> missing;
  for (const PplPlan& plan : plans) {
    if (!session.find(Places::key(first, plan.plan))) missing.push_back(&plan);
  }
  return missing;
}

/// The dense prefix of a place, and what is behind it.
struct PplPlace {
  const Sequence& prefix;
  std::span<const Token> tokens;
  int64_t first = 0;
};

/// Measures plans that select alike, by the same pages or by none.
void measure_plans(EvalSession& session, Engine& engine, const PplPlace& place, std::span<const PplPlan* const> group,
                   const TextReference& reference) {
  const std::optional<PageRule> rule = group.front()->pages;
  std::vector<Plan> plans;
  for (const PplPlan* own : group) {
    if (own->plan.plan.has_sparse()) plans.push_back(own->plan.plan);
  }
  std::optional<PageAttention> pages;
  if (rule) pages.emplace(engine, *rule);
  const std::vector<TextScore> scores = score_text(
      engine, place.prefix, place.tokens, plans, [&] { session.advance(kStepWork); }, reference);
  size_t next = 1;
  for (const PplPlan* own : group) {
    TextScore score = own->plan.plan.has_sparse() ? scores[next++] : scores[0];
    if (rule) {
      MeanError bytes;
      for (size_t step = 1; step < place.tokens.size(); ++step) {
        const int context = place.prefix.length() + static_cast<int>(step);
        bytes.add(static_cast<double>(page_decode_bytes(engine, own->plan.plan, *rule, context)));
      }
      score.bytes = bytes.mean();
    }
    session.add(Places::key(place.first, own->plan), values_of(score));
  }
}

/// `whole`: an engine with a cache in bf16, whose full attention the others are held against; null: it is their own.
void measure_place(EvalSession& session, Engine& engine, Engine* whole, const std::vector<PplPlan>& plans,
                   std::span<const Token> tokens, int prefix, int64_t first) {
  const std::vector<const PplPlan*> missing = missing_plans(session, plans, first);
  if (missing.empty()) return;
  PromptCache cache(engine);
  const Sequence& sequence = cache.prefill(tokens.first(prefix), [&](int done) { session.advance(done); });
  std::optional<Sequence> other;
  if (whole) whole->prefill(other.emplace(whole->create()), tokens.first(prefix));
  const PplPlace place{sequence, tokens.subspan(prefix), first};
  for (auto begin = missing.begin(); begin != missing.end();) {
    const auto end =
        std::find_if(begin, missing.end(), [&](const PplPlan* own) { return own->pages != (*begin)->pages; });
    measure_plans(session, engine, place, {begin, end}, {whole, other ? &*other : nullptr});
    begin = end;
  }
}

/// Work that is still to be done, in units of advance().
int64_t work_left(const EvalSession& session, const std::vector<PplPlan>& plans, const PplFlags& flags,
                  const Places& places) {
  int64_t work = 0;
  for (const int64_t first : places.firsts()) {
    const auto missing = static_cast<int64_t>(missing_plans(session, plans, first).size());
    if (missing > 0)
      work += flags.places.prefix + int64_t{kStepWork} * flags.places.steps * std::max<int64_t>(missing - 1, 1);
  }
  return work;
}

/// The rows of one plan at all places.
struct PlanResult {
  const EvalPlan* plan = nullptr;
  MeanError nll, kl, same, bytes;
  double kl_error = 0;
  std::vector<MeanError> parts;
};

std::vector<PlanResult> results(const EvalSession& session, const std::vector<PplPlan>& plans, const Places& places) {
  std::vector<PlanResult> results;
  for (const PplPlan& own : plans) {
    const EvalPlan& plan = own.plan;
    PlanResult& result = results.emplace_back();
    result.plan = &plan;
    double only_error = 0;
    for (const int64_t first : places.firsts()) {
      const Json& row = *session.find(Places::key(first, plan));
      result.nll.add(number(row["nll"]));
      result.kl.add(number(row["kl"]));
      result.same.add(number(row["same"]));
      result.bytes.add(number(row["bytes_per_token"]));
      only_error = number(row["kl_error"]);
      const Json& parts = row["kl_parts"];
      result.parts.resize(parts.size());
      for (size_t i = 0; i < parts.size(); ++i) result.parts[i].add(number(parts[i]));
    }
    // Steps of one place have much in common, places little: with several the spread between them says more.
    result.kl_error = places.firsts().size() > 1 ? result.kl.error() : only_error;
  }
  return results;
}

std::string table(const std::vector<PlanResult>& results) {
  std::vector<std::vector<std::string>> lines = {
      {"plan", "perplexity", "KL from full", "std. error", "same argmax", "MB/token"}};
  for (const PlanResult& result : results) {
    lines.push_back({result.plan->name, fmt::format("{:.2f}", std::exp(result.nll.mean())),
                     fmt::format("{:.4f}", result.kl.mean()), fmt::format("{:.4f}", result.kl_error),
                     fmt::format("{:.1f} %", 100 * result.same.mean()),
                     fmt::format("{:.1f}", result.bytes.mean() / 1e6)});
  }
  return markdown_table(lines);
}

/// A plan's name without its budget: plans that differ in nothing else are one curve.
std::string curve_name(const EvalPlan& plan) {
  const size_t comma = plan.name.find(", ");
  return plan.name.substr(comma + 2);
}

/// KL against what attention reads, or along the text when every curve would have one point. `weights`: the bytes of a
/// token that are not attention's.
LineChart chart(const std::vector<PlanResult>& results, const PlaceFlags& flags, const std::string& model,
                int64_t weights) {
  const auto read = [weights](const PlanResult& result) { return result.bytes.mean() - static_cast<double>(weights); };
  std::map<std::string, LineSeries> curves;
  size_t most = 0;
  for (const PlanResult& result : results) {
    if (!result.plan->plan.has_sparse()) continue;
    LineSeries& curve = curves[curve_name(*result.plan)];
    curve.name = curve_name(*result.plan);
    curve.points.push_back({read(result), result.kl.mean(), result.kl_error});
    most = std::max(most, curve.points.size());
  }
  LineChart chart;
  chart.title = "KL divergence from full attention: " + model;
  chart.description =
      fmt::format("KL divergence of the next-token distribution from full attention's, {} steps after {} tokens",
                  flags.steps, flags.prefix);
  const std::string full = format_value(read(results.front()), Unit::Bytes);
  chart.x = {fmt::format("K/V and sketches read per token (full attention: {})", full), Scale::Log10, Unit::Bytes};
  chart.y = {"KL(full || plan), nats", Scale::Log10, Unit::Number};
  if (most > 1) {
    for (auto& [name, curve] : curves) {
      std::sort(curve.points.begin(), curve.points.end(),
                [](const LinePoint& a, const LinePoint& b) { return a.x < b.x; });
      chart.series.push_back(std::move(curve));
    }
    return chart;
  }
  chart.x = {"decoded tokens", Scale::Linear, Unit::Number};
  chart.y = {"KL(full || plan), nats", Scale::Linear, Unit::Number};
  for (const PlanResult& result : results) {
    if (!result.plan->plan.has_sparse()) continue;
    LineSeries& curve = chart.series.emplace_back();
    curve.name = result.plan->name;
    for (size_t i = 0; i < result.parts.size(); ++i) {
      const double x = (static_cast<double>(i) + 0.5) * flags.steps / static_cast<double>(result.parts.size());
      curve.points.push_back({x, result.parts[i].mean()});
    }
  }
  return chart;
}

/// Where an engine beside `other`, made before it, has its K and V. By auto it would leave the other one nothing: where
/// the device has no room for both caches it takes its share of what there is.
KvPlace place_beside(EvalSession& session, const EngineOptions& own, const EngineOptions& other) {
  const KvPlace asked = session.place();
  Backend& backend = session.backend();
  if (backend.device().empty()) return session.place();  // a folder is for both
  if (asked.kind != KvPlace::Kind::Auto || !backend.host_kv_problem().empty()) {
    return asked.kind == KvPlace::Kind::Bytes ? asked : KvPlace{};
  }
  const Hyperparameters& hp = session.model().hp;
  const EngineMemory mine = engine_memory(backend, hp, Plan::full(hp.layers), own);
  EngineMemory most;
  for (const EvalPlan& plan : session.plans()) {
    const EngineMemory memory = engine_memory(backend, hp, plan.plan, other);
    if (memory.total() > most.total()) most = memory;
  }
  constexpr int64_t kSpare = int64_t{1} << 30;  // for what both copy from the host
  const int64_t caches = mine.cache + most.cache, free = backend.free_bytes();
  const int64_t others = mine.total() + most.total() - caches;
  if (caches + others <= free) return {};
  const double share = static_cast<double>(mine.cache) / static_cast<double>(std::max<int64_t>(caches, 1));
  const auto left = static_cast<double>(std::max<int64_t>(free - others - kSpare, 0));
  return {KvPlace::Kind::Bytes, static_cast<int64_t>(share * left)};
}

void evaluate(EvalSession& session, const PplFlags& flags) {
  const std::vector<PplPlan> all_plans = ppl_plans(session, flags);
  const Places places(session, "ppl", flags.places, 1);
  session.begin(work_left(session, all_plans, flags, places));
  const auto plans = static_cast<int>(session.plans().size());
  const int context = flags.places.prefix + flags.places.steps;
  const EngineOptions options{
      .context = context,
      .tokens = flags.places.prefix + teacher_forced_tokens(std::min(plans, kTogether), flags.places.steps),
      .sequences = std::min(plans, kStepSequences),
      .kv_type = session.kv_type(),
      .whole_windows = true,  // a fork that had to give up its window would be corrected
      .kv_place = session.place(),
      .later_plans = session.later_plans()};
  // First, so that the backend has room for passes of the other one, which are larger.
  std::optional<Engine> whole;
  if (session.kv_type() != KvType::Bf16) {
    EngineOptions own{.context = context, .tokens = context + kBlockTokens, .whole_windows = true};
    own.kv_place = place_beside(session, own, options);
    whole.emplace(session.backend(), session.model(), Plan::full(session.model().hp.layers), own);
  }
  Engine engine(session.backend(), session.model(), Plan::full(session.model().hp.layers), options);
  for (const int64_t first : places.firsts()) {
    measure_place(session, engine, whole ? &*whole : nullptr, all_plans, places.tokens(first), flags.places.prefix,
                  first);
  }
  const std::vector<PlanResult> all = results(session, all_plans, places);
  session.print(table(all));
  session.print(fmt::format(
      "\n{} of the text, {} tokens decoded one a step after a dense prefix of {}. KL(full || plan) in nats; its "
      "standard error {}.\n",
      flags.places.places == 1 ? "One place" : fmt::format("{} places", flags.places.places), flags.places.steps,
      flags.places.prefix,
      flags.places.places == 1 ? "takes the steps for independent" : "comes from the spread between places"));
  if (!flags.pages.empty()) {
    session.print(
        "Pages: as many of those with the highest scores as the plan's bytes are enough for, summaries included.\n");
  }
  if (whole) session.print("Full is full attention with a cache in bf16, for all rows.\n");
  if (session.draws())
    session.draw(to_svg(chart(all, flags.places, session.model_name(), session.model().decode_weight_bytes())));
}

}  // namespace

CLI::App* add_eval_ppl(CLI::App& eval) {
  const auto flags = std::make_shared<PplFlags>();
  CLI::App* command = eval.add_subcommand(
      "ppl", "Perplexity and KL divergence from full attention, one token a step after a dense prefix");
  add_eval_flags(*command, flags->eval);
  add_place_flags(*command, flags->places);
  command
      ->add_option("--pages", flags->pages,
                   "Beside every plan that scans another that selects pages, for the same bytes: quest (bounds of the "
                   "keys), unique (mean and deviation), deviations (those of every channel); quest:16 are pages of 16 "
                   "positions")
      ->type_name("RULE,...")
      ->allow_extra_args(false)
      ->delimiter(',');
  command->callback([flags] { run_eval(flags->eval, [&](EvalSession& session) { evaluate(session, *flags); }); });
  return command;
}

}  // namespace tidal
