#include <fmt/core.h>

#include "cli/eval_commands.h"
#include "cli/eval_places.h"
#include "eval/prompt_cache.h"
#include "eval/recall.h"
#include "eval/teacher_forced.h"
#include "report/line_chart.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct RecallFlags {
  EvalFlags eval;
  PlaceFlags places{.text = "", .prefix = 4096, .steps = 32, .places = 2};
};

Json layer_key(int64_t first, const EvalPlan& plan, int layer) {
  Json key = Places::key(first, plan);
  key["layer"] = layer;
  return key;
}

/// Plans whose layers do not all have a row at this place. Full attention reads everything and is left out.
std::vector<const EvalPlan*> missing_plans(const EvalSession& session, int64_t first) {
  std::vector<const EvalPlan*> missing;
  for (const EvalPlan& plan : session.plans()) {
    bool complete = true;
    for (int layer = 0; layer < session.model().hp.layers; ++layer) {
      complete = complete && session.find(layer_key(first, plan, layer));
    }
    if (plan.plan.has_sparse() && !complete) missing.push_back(&plan);
  }
  return missing;
}

void measure_place(EvalSession& session, Engine& engine, std::span<const Token> tokens, int prefix, int64_t first) {
  const std::vector<const EvalPlan*> missing = missing_plans(session, first);
  if (missing.empty()) return;
  std::vector<Plan> plans;
  plans.reserve(missing.size());
  for (const EvalPlan* plan : missing) plans.push_back(plan->plan);
  PromptCache cache(engine);
  const Sequence& sequence = cache.prefill(tokens.first(prefix), [&](int done) { session.advance(done); });
  const auto recall =
      measure_recall(engine, sequence, tokens.subspan(prefix), plans, [&] { session.advance(kStepWork); });
  for (size_t p = 0; p < missing.size(); ++p) {
    for (size_t l = 0; l < recall[p].size(); ++l) {
      const Json key = layer_key(first, *missing[p], static_cast<int>(l));
      if (session.find(key)) continue;
      const LayerRecall& layer = recall[p][l];
      session.add(key,
                  {{"role", to_string(layer.role)}, {"mass", layer.mass.mean()}, {"mass_error", layer.mass.error()}});
    }
  }
}

struct PlanRecall {
  const EvalPlan* plan = nullptr;
  std::vector<MeanError> layers;
};

std::vector<PlanRecall> results(const EvalSession& session, const Places& places) {
  std::vector<PlanRecall> results;
  for (const EvalPlan& plan : session.plans()) {
    if (!plan.plan.has_sparse()) continue;
    PlanRecall& result = results.emplace_back();
    result.plan = &plan;
    result.layers.resize(session.model().hp.layers);
    for (size_t l = 0; l < result.layers.size(); ++l) {
      for (const int64_t first : places.firsts()) {
        result.layers[l].add(number(session.find(layer_key(first, plan, static_cast<int>(l)))->at("mass")));
      }
    }
  }
  return results;
}

std::string table(const std::vector<PlanRecall>& results) {
  std::vector<std::vector<std::string>> lines = {{"layer"}};
  for (const PlanRecall& result : results) lines[0].push_back(result.plan->name);
  for (size_t l = 0; !results.empty() && l < results[0].layers.size(); ++l) {
    std::vector<std::string>& line = lines.emplace_back();
    line.push_back(std::to_string(l));
    for (const PlanRecall& result : results) {
      const Role role = result.plan->plan.roles[l];
      line.push_back(role == Role::Sparse ? fmt::format("{:.1f} %", 100 * result.layers[l].mean()) : to_string(role));
    }
  }
  std::vector<std::string> means = {"Sparse layers"};
  for (const PlanRecall& result : results) {
    MeanError mean;
    for (size_t l = 0; l < result.layers.size(); ++l) {
      if (result.plan->plan.roles[l] == Role::Sparse) mean.add(result.layers[l].mean());
    }
    means.push_back(fmt::format("{:.1f} %", 100 * mean.mean()));
  }
  lines.push_back(means);
  return markdown_table(lines);
}

LineChart chart(const std::vector<PlanRecall>& results, const PlaceFlags& flags, const std::string& model) {
  LineChart chart;
  chart.title = "Attention mass that the positions read hold: " + model;
  chart.description =
      fmt::format("Share of each layer's softmax over the whole context, averaged over heads, {} steps after {} tokens",
                  flags.steps, flags.prefix);
  chart.x = {"layer", Scale::Linear, Unit::Number};
  chart.y = {"mass", Scale::Linear, Unit::Percent};
  for (const PlanRecall& result : results) {
    LineSeries& series = chart.series.emplace_back();
    series.name = result.plan->name;
    for (size_t l = 0; l < result.layers.size(); ++l) {
      series.points.push_back({static_cast<double>(l), result.layers[l].mean()});
    }
  }
  return chart;
}

void evaluate(EvalSession& session, const RecallFlags& flags) {
  const Places places(session, "recall", flags.places, 0);
  int64_t work = 0;
  for (const int64_t first : places.firsts()) {
    const auto missing = static_cast<int64_t>(missing_plans(session, first).size());
    if (missing > 0) work += flags.places.prefix + kStepWork * missing * flags.places.steps;
  }
  session.begin(work);
  Engine engine(session.backend(), session.model(), Plan::full(session.model().hp.layers),
                {.context = flags.places.prefix + flags.places.steps,
                 .tokens = flags.places.prefix +
                           teacher_forced_tokens(static_cast<int>(session.plans().size()), flags.places.steps)});
  for (const int64_t first : places.firsts()) {
    measure_place(session, engine, places.tokens(first), flags.places.prefix, first);
  }
  const std::vector<PlanRecall> all = results(session, places);
  session.print(table(all));
  session.print(fmt::format(
      "\nShare of each layer's own attention over the whole context that the positions it read hold: mean over heads, "
      "{} steps and {} {}, {} tokens before them.\n",
      flags.places.steps, flags.places.places, flags.places.places == 1 ? "place" : "places", flags.places.prefix));
  if (session.draws()) session.draw(to_svg(chart(all, flags.places, session.model_name())));
}

}  // namespace

CLI::App* add_eval_recall(CLI::App& eval) {
  const auto flags = std::make_shared<RecallFlags>();
  CLI::App* command = eval.add_subcommand("recall", "Attention mass that the selected positions hold, layer by layer");
  add_eval_flags(*command, flags->eval);
  add_place_flags(*command, flags->places);
  command->callback([flags] { run_eval(flags->eval, [&](EvalSession& session) { evaluate(session, *flags); }); });
  return command;
}

}  // namespace tidal
