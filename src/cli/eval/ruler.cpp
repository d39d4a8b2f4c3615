#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "cli/bench/options.h"
#include "cli/eval/commands.h"
#include "cli/eval/session.h"
#include "core/error.h"
#include "core/utf8.h"
#include "eval/greedy_answers.h"
#include "eval/next_token.h"
#include "eval/prompt_cache.h"
#include "eval/ruler_prompt.h"
#include "report/heat_map.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct RulerFlags {
  EvalFlags eval;
  std::string text;
  std::string lengths = "4096", tasks, haystack = "text", question = "sparse";
  RulerSizes sizes;
  int prompts = 10, seed = 1;
};

std::string every_task() {
  std::string all;
  for (const std::string& name : ruler_task_names()) all += (all.empty() ? "" : ",") + name;
  return all;
}

/// The prompts of one task and length.
struct RulerCell {
  RulerTask task = RulerTask::MultiKey;
  int length = 0;
};

class RulerRun {
 public:
  RulerRun(EvalSession& session, const RulerFlags& flags)
      : session_(session),
        flags_(flags),
        seed_(static_cast<uint64_t>(flags.seed)),
        question_(question_from(flags.question)),
        lengths_(number_list("--lengths", flags.lengths, 1)),
        text_(session.read_text(flags.text)) {
    need_at_least("--prompts", flags.prompts, 1);
    need_at_least("--seed", flags.seed, 0);
    if (flags.haystack != "text" && flags.haystack != "noise") {
      fail("--haystack: '{}' is not known, expected text or noise", flags.haystack);
    }
    for (const std::string& word : word_list("--tasks", flags.tasks, ruler_task_names())) {
      for (const int length : lengths_) cells_.push_back({ruler_task_from(word), length});
    }
    session.check_context(lengths_.back());
    if (flags.haystack == "noise") noise_.emplace(noise_text(session.tokenizer(), lengths_.back()));
    texts_.haystack = noise_ ? &*noise_ : &text_;
    const bool lists =
        std::any_of(cells_.begin(), cells_.end(), [](auto& cell) { return cell.task == RulerTask::CommonWords; });
    if (lists) texts_.words = single_token_words(session.tokenizer(), session.tokenizer().decode(beginning()));
    for (const RulerCell& cell : cells_) {
      if (!noise_) text_.places(flags.prompts, cell.length);
      prompt(cell, 0);  // says what does not fit before anything is computed
    }
    session.open("ruler", {{"text", file_name(text_.name())},
                           {"text_hash", text_.hash()},
                           {"haystack", flags.haystack},
                           {"prompts", flags.prompts},  // which places they are from depends on how many there are
                           {"question", flags.question},
                           {"needles", flags.sizes.needles},
                           {"chains", flags.sizes.chains},
                           {"hops", flags.sizes.hops},
                           {"common", flags.sizes.common},
                           {"seed", flags.seed}});
  }

  void run() {
    session_.begin(work_left());
    for (const RulerCell& cell : cells_) run_cell(cell);
    session_.print(table());
    session_.print(fmt::format(
        "\nShare of the wanted strings that the answers name, in percent, and its standard error; {} prompts a cell, "
        "haystack {}, question {}, greedy answers.\n",
        flags_.prompts, texts_.haystack->name(), to_string(question_)));
    if (session_.draws()) session_.draw(picture());
  }

 private:
  static QuestionAs question_from(const std::string& word) {
    for (const QuestionAs known : {QuestionAs::Sparse, QuestionAs::Dense}) {
      if (word == to_string(known)) return known;
    }
    fail("--question: '{}' is not known, expected sparse or dense", word);
  }

  /// So much of the text as words for lists are taken from.
  std::vector<Token> beginning() const {
    constexpr int64_t kTokens = 200'000;
    return text_.stretch(0, std::min(text_.size(), kTokens) + text_.special());
  }

  RulerPrompt prompt(const RulerCell& cell, int index) const {
    const int64_t first = noise_ ? 0 : text_.places(flags_.prompts, cell.length)[static_cast<size_t>(index)];
    return ruler_prompt(session_.tokenizer(), texts_, first, cell.task, flags_.sizes, seed_, cell.length, index);
  }

  static Json key(const RulerCell& cell, int index, const EvalPlan& plan) {
    return {{"task", to_string(cell.task)}, {"length", cell.length}, {"prompt", index}, {"plan", plan.name}};
  }

  std::vector<const EvalPlan*> missing_plans(const RulerCell& cell, int index) const {
    std::vector<const EvalPlan*> missing;
    for (const EvalPlan& plan : session_.plans()) {
      if (!session_.find(key(cell, index, plan))) missing.push_back(&plan);
    }
    return missing;
  }

  /// About, in units of advance(): prefilled tokens, and the steps of the plans.
  static int64_t prompt_work(const RulerCell& cell, size_t plans) {
    constexpr int kSteps = 100;
    return cell.length + static_cast<int64_t>(plans) * kStepWork * kSteps;
  }

  int64_t work_left() const {
    int64_t work = 0;
    for (const RulerCell& cell : cells_) {
      for (int i = 0; i < flags_.prompts; ++i) {
        const size_t plans = missing_plans(cell, i).size();
        if (plans > 0) work += prompt_work(cell, plans);
      }
    }
    return work;
  }

  void run_cell(const RulerCell& cell) {
    const auto plans = static_cast<int>(session_.plans().size());
    std::optional<Engine> engine;
    std::optional<PromptCache> cache;
    for (int i = 0; i < flags_.prompts; ++i) {
      const std::vector<const EvalPlan*> missing = missing_plans(cell, i);
      if (missing.empty()) continue;
      const RulerPrompt asked = prompt(cell, i);
      if (!engine) {
        // Questions and answers of other prompts differ a little in length.
        const auto question = static_cast<int>(asked.question.size()) + 64;
        const int answer = 2 * asked.answer_tokens, room = cell.length + answer + 64;
        engine.emplace(
            session_.backend(), session_.model(), Plan::full(session_.model().hp.layers),
            EngineOptions{.context = room,
                          .tokens = room + greedy_answer_tokens(std::min(plans, kStepSequences) + 1, question, answer),
                          .sequences = std::min(plans, kStepSequences),
                          .kv_type = session_.kv_type(),
                          .whole_windows = true,  // prompts are cut back to what the next one shares
                          .kv_place = session_.place(),
                          .later_plans = session_.later_plans()});
        cache.emplace(*engine);
      }
      answer(*engine, *cache, cell, i, asked, missing);
      session_.advance(prompt_work(cell, missing.size()));
    }
  }

  void answer(Engine& engine, PromptCache& cache, const RulerCell& cell, int index, const RulerPrompt& asked,
              const std::vector<const EvalPlan*>& plans) {
    const Sequence& document = cache.prefill(asked.document, [&](int) { session_.advance(0); });
    std::vector<AnswerCase> cases;
    cases.reserve(plans.size());
    for (const EvalPlan* plan : plans) cases.push_back({&plan->plan, question_});
    const std::vector<GreedyAnswer> answers =
        greedy_answers(engine, session_.tokenizer(), document, asked.question, cases, {.tokens = asked.answer_tokens},
                       [&](int) { session_.advance(0); });
    for (size_t i = 0; i < plans.size(); ++i) {
      session_.add(key(cell, index, *plans[i]), {{"score", ruler_score(asked.wanted, answers[i].text)},
                                                 {"wanted", asked.wanted},
                                                 {"answer", answers[i].text}});
    }
  }

  std::vector<double> scores(const RulerCell& cell, const EvalPlan& plan) const {
    std::vector<double> scores;
    for (int i = 0; i < flags_.prompts; ++i) scores.push_back(number(session_.find(key(cell, i, plan))->at("score")));
    return scores;
  }

  static double mean(const std::vector<double>& scores) {
    MeanError mean;
    for (const double score : scores) mean.add(score);
    return mean.mean();
  }

  std::string table() const {
    std::vector<std::vector<std::string>> lines = {{"task", "length"}};
    for (const EvalPlan& plan : session_.plans()) lines[0].push_back(plan.name);
    std::vector<MeanError> means(session_.plans().size());
    for (const RulerCell& cell : cells_) {
      std::vector<std::string> line = {to_string(cell.task), std::to_string(cell.length)};
      for (size_t i = 0; i < means.size(); ++i) {
        const std::vector<double> own = scores(cell, session_.plans()[i]);
        means[i].add(mean(own));
        line.push_back(fmt::format("{:.1f} +- {:.1f}", 100 * mean(own), 100 * ruler_error(own)));
      }
      lines.push_back(line);
    }
    std::vector<std::string> last = {"mean", ""};
    for (const MeanError& own : means) last.push_back(fmt::format("{:.1f}", 100 * own.mean()));
    lines.push_back(last);
    return markdown_table(lines, 1);
  }

  std::string picture() const {
    HeatMapChart chart;
    chart.title = "RULER's tasks: " + session_.model_name();
    chart.description = "Share of the wanted strings that the answers name, by task, length and plan";
    chart.row_axis = "task";
    chart.column_axis = "plan";
    chart.value_name = "named (%)";
    chart.unit = Unit::Percent;
    chart.decimals = 0;
    chart.low = 0;
    chart.high = 1;
    for (const EvalPlan& plan : session_.plans()) chart.columns.push_back(plan.name);
    HeatMap& map = chart.maps.emplace_back();
    for (const RulerCell& cell : cells_) {
      chart.rows.push_back(fmt::format("{}, {}", to_string(cell.task), cell.length));
      for (const EvalPlan& plan : session_.plans()) map.values.emplace_back(mean(scores(cell, plan)));
    }
    return to_svg(chart);
  }

  EvalSession& session_;
  const RulerFlags& flags_;
  uint64_t seed_;
  QuestionAs question_;
  std::vector<int> lengths_;
  TextTokens text_;
  std::optional<TextTokens> noise_;
  RulerTexts texts_;
  std::vector<RulerCell> cells_;
};

}  // namespace

CLI::App* add_eval_ruler(CLI::App& eval) {
  const auto flags = std::make_shared<RulerFlags>();
  flags->tasks = every_task();
  CLI::App* command =
      eval.add_subcommand("ruler", "RULER's tasks: several needles, variables to be tracked, the words of a list");
  add_eval_flags(*command, flags->eval);
  const auto option = [&](const char* name, auto& value, const char* what, const char* type) {
    command->add_option(name, value, what)->type_name(type)->capture_default_str();
  };
  option("-f,--file", flags->text, "The haystack, and where words are taken from (default: kjv.txt beside the model)",
         "FILE");
  option("--tasks", flags->tasks, "Which", "NAME,...");
  option("--lengths", flags->lengths, "Tokens of a prompt, question included: 4096,8192", "N,...");
  option("--prompts", flags->prompts, "Prompts for every task and length, each from another place of the text", "N");
  option("--haystack", flags->haystack, "text, or noise: a few sentences again and again", "WORD");
  option("--question", flags->question,
         "sparse: it is decoded token by token by the plan; dense: it is part of the prefill", "WORD");
  option("--needles", flags->sizes.needles, "Keys, or values of one, that a text hides", "N");
  option("--chains", flags->sizes.chains, "Chains of variables, of which one is asked for", "N");
  option("--hops", flags->sizes.hops, "Assignments of a chain behind its first", "N");
  option("--common", flags->sizes.common, "Words of a list that come more often than the others", "N");
  option("--seed", flags->seed, "Of all that is drawn", "N");
  command->callback([flags] { run_eval(flags->eval, [&](EvalSession& session) { RulerRun(session, *flags).run(); }); });
  return command;
}

}  // namespace tidal
