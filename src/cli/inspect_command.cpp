#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/output.h"
#include "cli/console/terminal.h"
#include "cli/console/text_file.h"
#include "cli/options/backend_options.h"
#include "cli/options/chat_template_options.h"
#include "cli/options/kv_options.h"
#include "cli/options/plan_options.h"
#include "cli/options/plan_text.h"
#include "cli/options/thread_count.h"
#include "cli/options/window_options.h"
#include "core/error.h"
#include "core/utf8.h"
#include "core/whole_file.h"
#include "engine/exact.h"
#include "eval/inspect.h"

namespace tidal {
namespace {

struct InspectCommand {
  std::string model, document, question, page;
  std::string question_as = "sparse";
  int answer = 64;
  int exact = kDefaultDrafts;
  const CLI::Option* exact_option = nullptr;
  bool raw = false, whole_windows = false;
  std::optional<int> context, threads;
  ChatTemplateOptions chat_template;
  BackendOptions backend;
  KvOptions kv;
  PlanOptions plan;
};

void check(const InspectCommand& options) {
  if (options.answer < 1) fail("--n-predict: {} given, at least 1 is needed", options.answer);
  if (options.context && *options.context < 1) fail("--ctx-size: {} given, at least 1 is needed", *options.context);
  if (options.question_as != "sparse" && options.question_as != "dense") {
    fail("--question: '{}' is not known, expected sparse or dense", options.question_as);
  }
  check_kind(options.plan);
  if (options.plan.attention == "full") {
    fail("--attention: full attention selects nothing to look at, expected tidal or sketch");
  }
  if (options.exact < 1) fail("--exact: {} drafts given, at least 1 is needed", options.exact);
}

/// As many positions as the prompt and its answer need, at most what the model was trained for or was asked for.
int context_for(const InspectCommand& options, const InspectPrompt& prompt, const Hyperparameters& hp) {
  const int64_t tokens = static_cast<int64_t>(prompt.document.size() + prompt.question.size());
  const int most = options.context.value_or(hp.context);
  warn_of_long_context(most, hp.context);
  if (tokens + 1 > most) {
    fail("{}: its {} tokens, the question's {} and an answer do not fit in a context of {}; -c makes it longer",
         options.document, prompt.document.size(), prompt.question.size(), most);
  }
  return static_cast<int>(std::min<int64_t>(tokens + options.answer, most));
}

std::string rate(int64_t tokens, double seconds) {
  return fmt::format("{:.1f} tok/s", seconds > 0 ? static_cast<double>(tokens) / seconds : 0);
}

void add_facts(Inspection& inspection, const InspectCommand& options, const Model& model, const std::string& plan) {
  InspectReport& report = inspection.report;
  report.model = model.hp.name.empty() ? file_name(options.model) : model.hp.name;
  const auto answer = static_cast<int>(report.pieces.size()) - report.document - report.question;
  const auto steps = static_cast<int64_t>(report.steps.size());
  report.facts = {
      {"Plan", as_utf8(plan)},
      {"Document", fmt::format("{}, {} tokens", file_name(options.document), report.document)},
      {"Question", fmt::format("{} tokens, {}", report.question,
                               options.question_as == "dense" ? "prefilled" : "decoded sparsely")},
      {"Answer", fmt::format("{} tokens, {}", answer, report.end.empty() ? "cut there" : "ended by the model")},
      {"Prefill", rate(report.first_step, inspection.prefill_seconds)},
      {"Decoding and measuring", rate(steps, inspection.decode_seconds)}};
}

bool anything_selected(const InspectReport& report) {
  return std::any_of(report.steps.begin(), report.steps.end(),
                     [](const InspectStep& step) { return !step.selected.empty() && !step.selected[0][0].empty(); });
}

void run(const InspectCommand& options) {
  check(options);
  const std::string document = read_text_file(options.document);
  WholeFile page(options.page);
  const auto backend = open_backend(options.backend, thread_count(options.threads), options.model);
  const KvPlace place = kv_place(options.kv, *backend);
  const Model model = load_model(options.model, *backend);
  Tokenizer tokenizer = open_tokenizer(options.model);
  use_chat_template(tokenizer, options.chat_template);
  check_budget(options.plan, options.context.value_or(model.hp.context));
  const auto [plan, source] = choose_plan(options.plan, model.hp);
  const bool exact = options.exact_option->count() > 0;
  if (exact && plan.correct > 0) fail("--exact: every round corrects the cache, expected a plan without --correct");
  const bool chat = !options.raw && tokenizer.has_chat_template();
  if (chat) warn_about_chat_template(tokenizer);
  const InspectPrompt prompt = inspect_prompt(tokenizer, document, options.question, chat);
  const int context = context_for(options, prompt, model.hp);
  const std::string words = describe(plan, source, model.hp);
  note(words);

  const Interrupt interrupt;
  const StatusLine status;
  // Exact mode has its own copy of what follows the document.
  const int64_t again = exact ? context - static_cast<int64_t>(prompt.document.size()) + kBlockTokens : 0;
  Engine engine(*backend, model, plan,
                EngineOptions{.context = context,
                              .tokens = context + again,
                              .sequences = exact ? 2 : 1,
                              .kv_type = kv_type(options.backend.cache),
                              .whole_windows = options.whole_windows,
                              .kv_place = place});
  tell_kv_place(engine.pool());
  Inspection inspection = inspect(engine, tokenizer, prompt,
                                  {.answer = options.answer,
                                   .dense_question = options.question_as == "dense",
                                   .exact_drafts = exact ? options.exact : 0,
                                   .progress = [&](const char* what, int done, int total) {
                                     interrupt.check();
                                     status.show(fmt::format("{}: {} of {} tokens", what, done, total));
                                   }});
  status.clear();
  add_facts(inspection, options, model, words);
  const std::string html = inspect_page(inspection.report);
  page.write(html);
  write_out(inspection.answer + "\n");
  if (!anything_selected(inspection.report)) {
    warn(fmt::format("the context of {} tokens fits in the budget, so that no layer selected anything",
                     inspection.report.pieces.size()));
  }
  note(fmt::format("{}: {:.1f} KB, {} steps", options.page, static_cast<double>(html.size()) / 1e3,
                   inspection.report.steps.size()));
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  const auto options = std::make_shared<InspectCommand>();
  CLI::App* command = app.add_subcommand("inspect", "Show on an HTML page what an answer read of a document");
  command->add_option("-m,--model", options->model, "GGUF model file")->envname("TIDAL_MODEL")->required();
  command->add_option("-f,--file", options->document, "The document, a text file")->type_name("FILE")->required();
  command->add_option("-p,--prompt", options->question, "The question about it")->type_name("TEXT")->required();
  command->add_option("-o,--output", options->page, "The page to write")->type_name("FILE")->required();
  command->add_option("-n,--n-predict,--predict", options->answer, "Most tokens of the answer")->capture_default_str();
  command
      ->add_option("--question", options->question_as, "sparse: decode the question token by token; dense: prefill it")
      ->type_name("sparse|dense")
      ->capture_default_str();
  command->add_option("-c,--ctx-size", options->context, "Most tokens in all (default: what the model was trained for)")
      ->envname("TIDAL_CTX_SIZE")
      ->type_name("N");
  command->add_option("-t,--threads", options->threads, "Threads (default: all processors)")->envname("TIDAL_THREADS");
  add_backend_options(*command, options->backend);
  add_kv_options(*command, options->kv);
  add_attention_option(*command, options->plan, "tidal|sketch");
  options->exact_option =
      command
          ->add_option("--exact", options->exact,
                       fmt::format("Also answer by exact mode and show how many of its drafts, at most T a round, were "
                                   "accepted (default: {})",
                                   kDefaultDrafts))
          ->type_name("T")
          ->expected(0, 1)
          ->default_str(std::to_string(kDefaultDrafts));
  add_chat_template_options(*command, options->chat_template);
  command->add_flag("--raw", options->raw, "Text as it is, without the model's chat template");
  add_plan_options(*command, options->plan);
  add_window_option(*command, options->whole_windows);
  command->callback([options] {
    find_plan_file(options->plan, options->model);
    run(*options);
  });
}

}  // namespace tidal
