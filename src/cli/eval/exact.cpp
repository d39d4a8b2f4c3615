// tidal eval exact: exact mode against full attention, prompt by prompt.
#include <fmt/core.h>

#include <algorithm>

#include "cli/bench/options.h"
#include "cli/eval/commands.h"
#include "cli/eval/session.h"
#include "core/utf8.h"
#include "eval/exact_text.h"
#include "eval/prompt_cache.h"
#include "report/line_chart.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct ExactFlags {
  EvalFlags eval;
  std::string text;
  std::string lengths = "2048,4096,6144,8192";
  int prompts = 5, predict = 128, drafts = kDefaultDrafts;
  bool no_copies = false;
};

/// One prompt of the text.
struct Place {
  int length = 0;
  int64_t first = 0;

  Json key(const std::string& plan) const { return {{"length", length}, {"place", first}, {"plan", plan}}; }
};

class ExactEvaluation {
 public:
  ExactEvaluation(EvalSession& session, const ExactFlags& flags);
  void run();

 private:
  void measure(PromptCache& cache, Engine& engine, const Place& place);
  /// The plans that draft: all but full attention.
  std::span<const EvalPlan> drafting() const { return std::span(session_.plans()).subspan(1); }
  std::string table() const;
  LineChart chart() const;

  EvalSession& session_;
  const ExactFlags& flags_;
  std::vector<int> lengths_;
  TextTokens text_;
  std::vector<Place> places_;
};

ExactEvaluation::ExactEvaluation(EvalSession& session, const ExactFlags& flags)
    : session_(session),
      flags_(flags),
      lengths_(number_list("--lengths", flags.lengths, 2)),
      text_(session.read_text(flags.text)) {
  need_at_least("--prompts", flags.prompts, 1);
  need_at_least("-n", flags.predict, 1);
  need_at_least("--drafts", flags.drafts, 1);
  session.check_context(int64_t{lengths_.back()} + flags.predict);
  for (const int length : lengths_) {
    for (const int64_t first : text_.places(flags.prompts, length)) places_.push_back({length, first});
  }
  session.open("exact", {{"text", file_name(text_.name())},
                         {"text_hash", text_.hash()},
                         {"predict", flags.predict},
                         {"drafts", flags.drafts},
                         {"copies", !flags.no_copies}});
}

void ExactEvaluation::measure(PromptCache& cache, Engine& engine, const Place& place) {
  const Json* known = session_.find(place.key("full"));
  std::vector<const EvalPlan*> missing;
  for (const EvalPlan& plan : drafting()) {
    if (!session_.find(place.key(plan.name))) missing.push_back(&plan);
  }
  if (known && missing.empty()) return;
  const std::vector<Token> tokens = text_.stretch(place.first, place.length);
  const Sequence& prompt =
      cache.prefill(std::span(tokens).first(tokens.size() - 1), [&](int done) { session_.advance(done); });
  const auto step = [&](int count) { session_.advance(int64_t{count} * kStepWork); };
  if (!known) {
    const FullText full = full_text(engine, prompt, tokens.back(), flags_.predict, step);
    session_.add(place.key("full"), {{"tokens", full.tokens}, {"gaps", full.gaps}, {"seconds", full.seconds}});
  }
  const Json full = *session_.find(place.key("full"));
  for (const EvalPlan* plan : missing) {
    const ExactText exact = exact_text(engine, prompt, tokens.back(), flags_.predict, plan->plan,
                                       {.drafts = flags_.drafts, .copy = !flags_.no_copies}, step);
    const auto expected = full["tokens"].get<std::vector<Token>>();
    const auto parted = std::mismatch(expected.begin(), expected.end(), exact.tokens.begin()).first - expected.begin();
    const bool same = parted == static_cast<ptrdiff_t>(expected.size());
    const ExactStatistics& statistics = exact.statistics;
    session_.add(place.key(plan->name), {{"same", same},
                                         {"parted_at", same ? Json(nullptr) : Json(parted)},
                                         {"gap_there", same ? Json(nullptr) : full["gaps"][parted]},
                                         {"seconds", exact.seconds},
                                         {"full_seconds", full["seconds"]},
                                         {"rounds", statistics.rounds},
                                         {"drafts_tried", statistics.sparse.tried},
                                         {"drafts_accepted", statistics.sparse.accepted},
                                         {"copies_tried", statistics.copied.tried},
                                         {"copies_accepted", statistics.copied.accepted},
                                         {"draft_seconds", statistics.draft_seconds},
                                         {"verify_seconds", statistics.verify_seconds}});
  }
}

std::string share(double part, double all) {
  return all > 0 ? fmt::format("{:.0f} of {:.0f} ({:.0f} %)", part, all, 100 * part / all) : "-";
}

std::string ExactEvaluation::table() const {
  std::vector<std::vector<std::string>> lines = {{"plan", "length", "same text", "drafts held", "copies held",
                                                  "tokens a round", "full ms/token", "exact ms/token", "speedup"}};
  for (const EvalPlan& plan : drafting()) {
    for (const int length : lengths_) {
      double same = 0, count = 0, rounds = 0, full = 0, exact = 0, tried = 0, held = 0, copied = 0, copies = 0;
      for (const Place& place : places_) {
        if (place.length != length) continue;
        const Json& row = *session_.find(place.key(plan.name));
        ++count;
        same += row["same"].get<bool>() ? 1 : 0;
        rounds += number(row["rounds"]);
        full += number(row["full_seconds"]);
        exact += number(row["seconds"]);
        tried += number(row["drafts_tried"]);
        held += number(row["drafts_accepted"]);
        copied += number(row["copies_tried"]);
        copies += number(row["copies_accepted"]);
      }
      const double tokens = count * flags_.predict;
      lines.push_back({plan.name, std::to_string(length), fmt::format("{:.0f} of {:.0f}", same, count),
                       share(held, tried), share(copies, copied), fmt::format("{:.2f}", tokens / rounds),
                       fmt::format("{:.2f}", 1e3 * full / tokens), fmt::format("{:.2f}", 1e3 * exact / tokens),
                       fmt::format("{:.2f}x", full / exact)});
    }
  }
  return markdown_table(lines);
}

LineChart ExactEvaluation::chart() const {
  LineChart chart;
  chart.title = "Exact mode: speed over full attention: " + session_.model_name();
  chart.description = "Tokens per second of exact mode over those of full attention against the length of the prompt";
  chart.x = {"prompt (tokens)", Scale::Log2, Unit::Count};
  chart.y = {"speedup", Scale::Linear, Unit::Number};
  for (const EvalPlan& plan : drafting()) {
    LineSeries& series = chart.series.emplace_back();
    series.name = plan.name;
    for (const int length : lengths_) {
      double full = 0, exact = 0;
      for (const Place& place : places_) {
        if (place.length != length) continue;
        const Json& row = *session_.find(place.key(plan.name));
        full += number(row["full_seconds"]);
        exact += number(row["seconds"]);
      }
      series.points.push_back({static_cast<double>(length), full / exact});
    }
  }
  return chart;
}

void ExactEvaluation::run() {
  int64_t work = 0;
  for (const Place& place : places_) {
    work += place.length + int64_t{flags_.predict} * kStepWork * static_cast<int64_t>(session_.plans().size());
  }
  session_.begin(work);
  const int context = lengths_.back() + flags_.predict;
  Engine engine(session_.backend(), session_.model(), Plan::full(session_.model().hp.layers),
                {.context = context,
                 .tokens = int64_t{context} + flags_.predict + kBlockTokens,
                 .sequences = 2,
                 .kv_type = session_.kv_type(),
                 .kv_place = session_.place(),
                 .later_plans = session_.later_plans()});
  PromptCache cache(engine);
  for (const Place& place : places_) {
    engine.set_plan(Plan::full(session_.model().hp.layers));
    measure(cache, engine, place);
  }
  session_.print(table());
  for (const EvalPlan& plan : drafting()) {
    for (const Place& place : places_) {
      const Json& row = *session_.find(place.key(plan.name));
      if (row["same"].get<bool>()) continue;
      session_.print(
          fmt::format("{}, {} tokens from {} on: parts from full attention's text at token {}, where its two "
                      "best logits are {:.3g} apart\n",
                      plan.name, place.length, place.first, row["parted_at"].get<int>(), number(row["gap_there"])));
    }
  }
  session_.print(fmt::format("\n{} prompts of each length, {} greedy tokens each, at most {} drafts a round.\n",
                             flags_.prompts, flags_.predict, flags_.drafts));
  if (session_.draws()) session_.draw(to_svg(chart()));
}

}  // namespace

CLI::App* add_eval_exact(CLI::App& eval) {
  const auto flags = std::make_shared<ExactFlags>();
  CLI::App* command = eval.add_subcommand("exact", "Exact mode against full attention: the same text, and how fast");
  add_eval_flags(*command, flags->eval);
  command->add_option("-f,--file", flags->text, "The text (default: kjv.txt beside the model)")->type_name("FILE");
  command->add_option("--lengths", flags->lengths, "Tokens of the prompts, a list")->capture_default_str();
  command->add_option("--prompts", flags->prompts, "Prompts of each length, spread over the text")
      ->capture_default_str();
  command->add_option("-n,--n-predict,--predict", flags->predict, "Tokens of an answer")->capture_default_str();
  command->add_option("--drafts", flags->drafts, "Most drafts of a round")->capture_default_str();
  command->add_flag("--no-copies", flags->no_copies, "Only tidal attention's drafts, none copied from the text");
  command->callback(
      [flags] { run_eval(flags->eval, [&](EvalSession& session) { ExactEvaluation(session, *flags).run(); }); });
  return command;
}

}  // namespace tidal
