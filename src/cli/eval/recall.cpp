#include <fmt/core.h>

#include "cli/eval/commands.h"
#include "cli/eval/places.h"
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

/// Plans whose layers do not all have a row at this place. Full attention reads everything and is left out, and so are
/// layers that do not read the whole context.
std::vector<const EvalPlan*> missing_plans(const EvalSession& session, int64_t first) {
  std::vector<const EvalPlan*> missing;
  for (const EvalPlan& plan : session.plans()) {
    bool complete = true;
    for (const int layer : session.model().hp.layers_that_read_all()) {
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
    for (const int l : session.model().hp.layers_that_read_all()) {
      const Json key = layer_key(first, *missing[p], l);
      if (session.find(key)) continue;
      const LayerRecall& layer = recall[p][static_cast<size_t>(l)];
      Json values = {{"role", to_string(layer.role)}, {"mass", layer.mass.mean()}, {"mass_error", layer.mass.error()}};
      if (layer.role == Role::Scan) {
        // None where the context fits in the budget, so that the layer scanned nothing.
        const auto figure = [](const MeanError& mean) { return mean.count() > 0 ? Json(mean.mean()) : Json(nullptr); };
        values["agreement"] = figure(layer.agreement);
        values["excess"] = figure(layer.excess);
      }
      session.add(key, values);
    }
  }
}

struct PlanRecall {
  const EvalPlan* plan = nullptr;
  std::vector<MeanError> mass, agreement, excess;  // [layers]; nothing of those that do not read the whole context
};

std::vector<PlanRecall> results(const EvalSession& session, const Places& places) {
  std::vector<PlanRecall> results;
  for (const EvalPlan& plan : session.plans()) {
    if (!plan.plan.has_sparse()) continue;
    PlanRecall& result = results.emplace_back();
    result.plan = &plan;
    result.mass.resize(session.model().hp.layers);
    result.agreement.resize(session.model().hp.layers);
    result.excess.resize(session.model().hp.layers);
    for (const int l : session.model().hp.layers_that_read_all()) {
      for (const int64_t first : places.firsts()) {
        const Json& row = *session.find(layer_key(first, plan, l));
        result.mass[l].add(number(row["mass"]));
        const auto add = [&row](const char* name, MeanError& figure) {
          if (row.contains(name) && !row[name].is_null()) figure.add(number(row[name]));
        };
        add("agreement", result.agreement[l]);
        add("excess", result.excess[l]);
      }
    }
  }
  return results;
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }
std::string signed_percent(double share) { return fmt::format("{:+.2f} %", 100 * share); }

/// Layers down, plans across, with a mean at the end of the layers that have a figure; `role`: what stands for others.
std::string layer_table(const std::vector<const PlanRecall*>& results, std::vector<MeanError> PlanRecall::*figures,
                        bool (*has_figure)(Role), std::string (*text)(double) = percent) {
  std::vector<std::vector<std::string>> lines = {{"layer"}};
  for (const PlanRecall* result : results) lines[0].push_back(result->plan->name);
  std::vector<MeanError> means(results.size());
  for (size_t l = 0; l < (results[0]->*figures).size(); ++l) {
    if (results[0]->mass[l].count() == 0) continue;
    std::vector<std::string>& line = lines.emplace_back();
    line.push_back(std::to_string(l));
    for (size_t p = 0; p < results.size(); ++p) {
      const Role role = results[p]->plan->plan.roles[l];
      const MeanError& figure = (results[p]->*figures)[l];
      if (has_figure(role) && figure.count() > 0) {
        means[p].add(figure.mean());
        line.push_back(text(figure.mean()));
      } else {
        line.emplace_back(to_string(role));
      }
    }
  }
  std::vector<std::string>& last = lines.emplace_back();
  last.emplace_back("mean");
  for (const MeanError& mean : means) last.push_back(mean.count() > 0 ? text(mean.mean()) : "-");
  return markdown_table(lines);
}

std::string mass_table(const std::vector<PlanRecall>& results) {
  std::vector<const PlanRecall*> all;
  for (const PlanRecall& result : results) all.push_back(&result);
  return layer_table(all, &PlanRecall::mass, reads_selected);
}

std::vector<const PlanRecall*> scanning(const std::vector<PlanRecall>& results) {
  std::vector<const PlanRecall*> scanning;
  for (const PlanRecall& result : results) {
    if (result.plan->plan.scans()) scanning.push_back(&result);
  }
  return scanning;
}

bool scans(Role role) { return role == Role::Scan; }

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
    for (size_t l = 0; l < result.mass.size(); ++l) {
      if (result.mass[l].count() > 0) series.points.push_back({static_cast<double>(l), result.mass[l].mean()});
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
                           teacher_forced_tokens(static_cast<int>(session.plans().size()), flags.places.steps),
                 .kv_type = session.kv_type(),
                 // Of the prefix and of a fork for each plan and full attention.
                 .states = SequenceStates::kMostSaved + static_cast<int>(session.plans().size()) + 1,
                 .whole_windows = true,  // a fork that had to give up its window would be corrected
                 .kv_place = session.place(),
                 .later_plans = session.later_plans()});
  for (const int64_t first : places.firsts()) {
    measure_place(session, engine, places.tokens(first), flags.places.prefix, first);
  }
  const std::vector<PlanRecall> all = results(session, places);
  if (!all.empty()) session.print(mass_table(all));
  session.print(fmt::format(
      "\nShare of each layer's own attention over the whole context that the positions it read hold: mean over heads, "
      "{} steps and {} {}, {} tokens before them.\n",
      flags.places.steps, flags.places.places, flags.places.places == 1 ? "place" : "places", flags.places.prefix));
  if (const auto of_scans = scanning(all); !of_scans.empty()) {
    session.print("\n" + layer_table(of_scans, &PlanRecall::agreement, scans));
    session.print(
        "\nShare of the positions that exact scores of a Scan layer's own keys would select that its sketch selects, "
        "those selected whatever their scores aside.\n");
    session.print("\n" + layer_table(of_scans, &PlanRecall::excess, scans, signed_percent));
    session.print(
        "\nWhat a Scan layer's sketch says that its selected positions hold of the mass, less what they hold: how far "
        "--select-top-p is off.\n");
  }
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
