#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "cli/console/output.h"
#include "cli/eval/commands.h"
#include "cli/eval/session.h"
#include "cli/options/chat_template_options.h"
#include "core/error.h"
#include "core/utf8.h"
#include "eval/greedy_answers.h"
#include "eval/longbench.h"
#include "eval/next_token.h"
#include "eval/prompt_cache.h"
#include "report/heat_map.h"
#include "report/table.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

struct LongBenchFlags {
  EvalFlags eval;
  std::string folder;
  std::vector<std::string> tasks;
  bool extended = false;
  int prompt = 0, examples = 0;
};

constexpr int kTemplate = 64;  // tokens that a chat template may add

class LongBenchRun {
 public:
  LongBenchRun(EvalSession& session, const LongBenchFlags& flags)
      : session_(session), data_(read_longbench(flags.folder, {.tasks = flags.tasks, .extended = flags.extended})) {
    need_at_least("--prompt", flags.prompt, 0);
    need_at_least("--examples", flags.examples, 0);
    if (flags.examples > 0) keep_first(flags.examples);
    for (const LongBenchExample& example : data_.examples) most_ = std::max(most_, example.task->max_new_tokens);
    const int trained = session.model().hp.context;
    limit_ = flags.prompt > 0 ? flags.prompt : trained - most_ - kTemplate;
    if (session.tokenizer().has_chat_template()) warn_about_chat_template(session.tokenizer());
    if (limit_ < 2) fail("--prompt: no room for a prompt in the context of {} that the model was trained for", trained);
    session.check_context(int64_t{limit_} + most_ + kTemplate);
    session.open("longbench", {{"folder", file_name(std::filesystem::path(flags.folder).lexically_normal().string())},
                               {"extended", flags.extended},
                               {"prompt", limit_}});
    for (const std::string& text : data_.notes) note(text);
    for (const std::string& text : data_.errors) warn(text);
  }

  void run() {
    session_.begin(work_left());
    const auto plans = static_cast<int>(session_.plans().size());
    const int room = limit_ + most_ + 2 * kTemplate;
    std::optional<Engine> engine;
    std::optional<PromptCache> cache;
    for (const LongBenchExample& example : data_.examples) {
      const std::vector<const EvalPlan*> missing = missing_plans(example);
      if (missing.empty()) continue;
      if (!engine) {
        engine.emplace(
            session_.backend(), session_.model(), Plan::full(session_.model().hp.layers),
            EngineOptions{.context = room,
                          .tokens = room + greedy_answer_tokens(std::min(plans, kStepSequences) + 1, 1, most_),
                          .sequences = std::min(plans, kStepSequences),
                          .kv_type = session_.kv_type(),
                          .whole_windows = true,  // prompts are cut back to what the next one shares
                          .kv_place = session_.place(),
                          .later_plans = session_.later_plans()});
        cache.emplace(*engine);
      }
      ask(*engine, *cache, example, missing);
    }
    session_.print(table());
    session_.print(fmt::format(
        "\nThe benchmark's figures: 100 times the mean score of a task. Prompts of up to {} tokens, longer ones cut in "
        "the middle, are prefilled densely; the answers are decoded by the plan.\n",
        limit_));
    if (session_.draws()) session_.draw(picture());
    // Last, so that the rows that could be had are there.
    if (!data_.errors.empty()) fail("{}", data_.errors.front());
  }

 private:
  void keep_first(int count) {
    std::map<std::string, int> seen;
    std::erase_if(data_.examples, [&](const LongBenchExample& example) { return ++seen[example.file] > count; });
  }

  static Json key(const LongBenchExample& example, const EvalPlan& plan) {
    return {{"task", example.file}, {"line", example.line}, {"plan", plan.name}};
  }

  std::vector<const EvalPlan*> missing_plans(const LongBenchExample& example) const {
    std::vector<const EvalPlan*> missing;
    for (const EvalPlan& plan : session_.plans()) {
      if (!session_.find(key(example, plan))) missing.push_back(&plan);
    }
    return missing;
  }

  /// About: a token has four characters, most answers end before their limit.
  int64_t example_work(const LongBenchExample& example, size_t plans) const {
    const int64_t prompt = std::min<int64_t>(limit_, static_cast<int64_t>(example.context.size()) / 4);
    return prompt + static_cast<int64_t>(plans) * kStepWork * example.task->max_new_tokens / 2;
  }

  int64_t work_left() const {
    int64_t work = 0;
    for (const LongBenchExample& example : data_.examples) {
      const size_t missing = missing_plans(example).size();
      if (missing > 0) work += example_work(example, missing);
    }
    return work;
  }

  void ask(Engine& engine, PromptCache& cache, const LongBenchExample& example,
           const std::vector<const EvalPlan*>& plans) {
    const std::vector<Token> prompt = longbench_prompt(example, session_.tokenizer(), limit_);
    if (prompt.size() < 2)
      fail("{}, line {}: its prompt has {} tokens, 2 are needed", example.file, example.line, prompt.size());
    // The last token is asked densely as well: the first token of an answer is full attention's, as after any prefill.
    const auto head = std::span(prompt).first(prompt.size() - 1), last = std::span(prompt).last(1);
    const Sequence& document = cache.prefill(head, [&](int) { session_.advance(0); });
    std::vector<AnswerCase> cases;
    cases.reserve(plans.size());
    for (const EvalPlan* plan : plans) cases.push_back({&plan->plan, QuestionAs::Dense});
    const std::vector<GreedyAnswer> answers =
        greedy_answers(engine, session_.tokenizer(), document, last, cases,
                       {.tokens = example.task->max_new_tokens, .at_newline = example.task->stop_at_newline},
                       [&](int) { session_.advance(0); });
    for (size_t i = 0; i < plans.size(); ++i) {
      session_.add(key(example, *plans[i]), {{"id", example.id},
                                             {"prompt_tokens", prompt.size()},
                                             {"score", longbench_score(example, answers[i].text)},
                                             {"tokens", answers[i].tokens},
                                             {"answer", answers[i].text}});
    }
    session_.advance(example_work(example, plans.size()));
  }

  /// The tasks in the order of the examples, with the name of their metric.
  std::vector<std::pair<std::string, std::string>> tasks() const {
    std::vector<std::pair<std::string, std::string>> tasks;
    for (const LongBenchExample& example : data_.examples) {
      if (tasks.empty() || tasks.back().first != example.file) {
        tasks.emplace_back(example.file, longbench_metric_name(example.task->metric));
      }
    }
    return tasks;
  }

  MeanError score(const std::string& task, const EvalPlan& plan) const {
    MeanError mean;
    for (const LongBenchExample& example : data_.examples) {
      if (example.file == task) mean.add(number(session_.find(key(example, plan))->at("score")));
    }
    return mean;
  }

  std::string table() const {
    std::vector<std::vector<std::string>> lines = {{"task", "metric", "examples"}};
    for (const EvalPlan& plan : session_.plans()) lines[0].push_back(plan.name);
    std::vector<MeanError> means(session_.plans().size());
    for (const auto& [task, metric] : tasks()) {
      std::vector<std::string> line = {task, metric, ""};
      for (size_t i = 0; i < means.size(); ++i) {
        const MeanError mean = score(task, session_.plans()[i]);
        means[i].add(mean.mean());
        line[2] = std::to_string(mean.count());
        line.push_back(fmt::format("{:.2f} +- {:.2f}", 100 * mean.mean(), 100 * mean.error()));
      }
      lines.push_back(line);
    }
    std::vector<std::string> last = {"mean of the tasks", "", ""};
    for (const MeanError& mean : means) last.push_back(fmt::format("{:.2f}", 100 * mean.mean()));
    lines.push_back(last);
    return markdown_table(lines, 2);
  }

  std::string picture() const {
    HeatMapChart chart;
    chart.title = "LongBench: " + session_.model_name();
    chart.description = "100 times the mean score of every task, by plan";
    chart.row_axis = "task";
    chart.column_axis = "plan";
    chart.value_name = "score";
    chart.unit = Unit::Percent;
    chart.decimals = 1;
    chart.low = 0;
    chart.high = 1;
    for (const EvalPlan& plan : session_.plans()) chart.columns.push_back(plan.name);
    HeatMap& map = chart.maps.emplace_back();
    for (const auto& [task, metric] : tasks()) {
      chart.rows.push_back(fmt::format("{} ({})", task, metric));
      for (const EvalPlan& plan : session_.plans()) map.values.emplace_back(score(task, plan).mean());
    }
    return to_svg(chart);
  }

  EvalSession& session_;
  LongBenchData data_;
  int most_ = 1;   // tokens of an answer
  int limit_ = 0;  // tokens of a prompt
};

}  // namespace

CLI::App* add_eval_longbench(CLI::App& eval) {
  const auto flags = std::make_shared<LongBenchFlags>();
  CLI::App* command = eval.add_subcommand("longbench", "LongBench's tasks and metrics, from its JSONL files");
  command->add_option("folder", flags->folder, "The folder with NAME.jsonl")->type_name("DIR")->required();
  add_eval_flags(*command, flags->eval);
  command->add_option("--tasks", flags->tasks, "Only these: qasper,trec (default: all in the folder)")
      ->type_name("NAME,...")
      ->allow_extra_args(false)
      ->delimiter(',');
  command->add_flag("--e", flags->extended, "LongBench-E: NAME_e.jsonl");
  command
      ->add_option("--prompt", flags->prompt,
                   "Most tokens of a prompt, longer ones lose their middle; 0: what the model was trained for allows")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--examples", flags->examples, "Only the first of every task; 0: all")
      ->type_name("N")
      ->capture_default_str();
  command->callback(
      [flags] { run_eval(flags->eval, [&](EvalSession& session) { LongBenchRun(session, *flags).run(); }); });
  return command;
}

}  // namespace tidal
