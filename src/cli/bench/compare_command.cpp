#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "cli/bench/llama_baseline.h"
#include "cli/bench/machine.h"
#include "cli/bench/options.h"
#include "cli/bench/run.h"
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
#include "core/timer.h"
#include "eval/exact_text.h"
#include "eval/next_token.h"

namespace tidal {
namespace {

struct CompareOptions {
  std::string model, file, question, baseline;
  std::optional<std::string> attention;
  int steps = 32;
  bool raw = false, whole_windows = false;
  std::optional<int> threads;
  ChatTemplateOptions chat_template;
  BackendOptions backend;
  KvOptions kv;
  PlanOptions plan;
};

/// One document in the cache, answered from by every kind of attention in turn.
class Comparison {
 public:
  explicit Comparison(const CompareOptions& options);
  void run();

 private:
  std::vector<Token> prompt_tokens();
  void prefill(Sequence& document);
  void answer(const BenchPlan& plan, const Sequence& document);
  void answer_exactly(const BenchPlan& plan, const Sequence& document);
  void baseline();
  BenchCase row_case(const std::string& engine, const std::string& attention, int depth) const;

  const CompareOptions& options_;
  const Interrupt interrupt_;
  const StatusLine status_;
  std::unique_ptr<Backend> backend_;
  KvPlace kv_place_;
  Model model_;
  Tokenizer tokenizer_;
  std::vector<BenchPlan> plans_;
  std::vector<Token> tokens_;
  std::unique_ptr<Engine> engine_;
  Token first_ = 0;  // of every answer
  BenchRun run_;     // what the rows share
  std::vector<BenchRow> rows_;
};

Comparison::Comparison(const CompareOptions& options)
    : options_(options),
      backend_(open_backend(options.backend, thread_count(options.threads), options.model)),
      kv_place_(kv_place(options.kv, *backend_)),
      model_(load_model(options.model, *backend_)),
      tokenizer_(open_tokenizer(options.model)),
      tokens_(prompt_tokens()) {
  if (options.steps < 1) fail("-n: {} given, at least 1 is needed", options.steps);
  check_baseline(options.baseline);
  const Hyperparameters& hp = model_.hp;
  plans_ = bench_plans(options.attention, options.plan, hp);
  const int length = static_cast<int>(tokens_.size()), context = length + options.steps;
  if (context > hp.context) {
    warn(fmt::format("{} tokens and {} of an answer are more than the {} that the model was trained for", length,
                     options.steps, hp.context));
  }
  // The prompt once, and a copy of its last block for every answer.
  const auto answers = static_cast<int>(plans_.size());
  EngineOptions engine{.context = context,
                       .tokens = context + int64_t{answers} * (options.steps + kBlockTokens),
                       .sequences = answers + 1,
                       .kv_type = kv_type(options.backend.cache),
                       .whole_windows = options.whole_windows,
                       .kv_place = kv_place_};
  plans_ = bench_plans(options.attention, options.plan, hp, full_below_of(*backend_, hp, engine));
  for (const BenchPlan& plan : plans_) engine.later_plans.push_back(plan.plan);
  engine_ = std::make_unique<Engine>(*backend_, model_, plans_[0].plan, engine);
  tell_kv_place(engine_->pool());
  run_.prompt = length;
  run_.generate = options.steps;
  run_.weight_bytes = model_.decode_weight_bytes();
  run_.hp = hp;
  run_.common.threads = thread_count(options.threads);
}

std::vector<Token> Comparison::prompt_tokens() {
  use_chat_template(tokenizer_, options_.chat_template);
  const std::string text = read_text_file(options_.file) + "\n\n" + options_.question;
  if (options_.raw || !tokenizer_.has_chat_template()) return tokenizer_.encode(text, true, false);
  warn_about_chat_template(tokenizer_);
  return tokenizer_.encode(tokenizer_.apply_chat_template(std::vector<ChatMessage>{{"user", text}}, true), true, true);
}

BenchCase Comparison::row_case(const std::string& engine, const std::string& attention, int depth) const {
  return {.engine = engine,
          .attention = attention,
          .depth = depth,
          .batch = 1,
          .budget = {},
          .kv_type = kv_type_name(kv_type(options_.backend.cache))};
}

void Comparison::prefill(Sequence& document) {
  const Timer timer;
  const int total = static_cast<int>(tokens_.size());
  const auto logits = engine_->prefill(document, tokens_, [&](int done) {
    interrupt_.check();
    status_.show(fmt::format("prefill: {} of {} tokens, {:.0f} tok/s", done, total, done / timer.seconds()));
    return true;
  });
  first_ = argmax(logits);
  rows_.push_back(prefill_row(run_, row_case("tidal", "full", 0), {timer.seconds()}));
  status_.clear();
}

void Comparison::answer(const BenchPlan& plan, const Sequence& document) {
  engine_->set_plan(plan.plan);
  Sequence sequence = document.fork();
  Token token = first_;
  std::string text;
  bool ended = false;
  std::vector<double> seconds;
  const int depth = sequence.length();
  // Even a short answer gets its full number of steps, for their time.
  for (int i = 0; i < options_.steps; ++i) {
    interrupt_.check();
    ended = ended || tokenizer_.is_end(token);
    if (!ended) text += tokenizer_.piece(token);
    const Timer timer;
    token = engine_->decode(sequence, token, 1)[0].token;
    seconds.push_back(timer.seconds());
  }
  write_out(fmt::format("{} attention: {}{}\n", plan.attention, text, ended ? "" : " ..."));
  BenchCase which = row_case("tidal", plan.attention, depth);
  if (plan.plan.has_sparse()) which.budget = plan.plan.policy.budget;
  const auto bytes = static_cast<double>(engine_->decode_bytes(depth + options_.steps / 2));
  rows_.push_back(decode_row(run_, which, std::move(seconds), bytes));
}

void Comparison::answer_exactly(const BenchPlan& plan, const Sequence& document) {
  const ExactText exact =
      exact_text(*engine_, document, first_, options_.steps, plan.plan, {}, [&](int) { interrupt_.check(); });
  std::vector<Token> tokens = {first_};
  tokens.insert(tokens.end(), exact.tokens.begin(), exact.tokens.end() - 1);
  const auto end = std::find_if(tokens.begin(), tokens.end(), [&](Token token) { return tokenizer_.is_end(token); });
  std::string text;
  std::for_each(tokens.begin(), end, [&](Token token) { text += tokenizer_.piece(token); });
  write_out(fmt::format("{} attention: {}{}\n", plan.attention, text, end != tokens.end() ? "" : " ..."));
  BenchCase which = row_case("tidal", plan.attention, document.length());
  which.budget = plan.plan.policy.budget;
  BenchRow row = decode_row(run_, which, {exact.seconds / options_.steps},
                            static_cast<double>(exact.statistics.bytes) / options_.steps);
  row.accepted_drafts = acceptance(exact.statistics.sparse);
  row.accepted_copies = acceptance(exact.statistics.copied);
  rows_.push_back(row);
}

void Comparison::baseline() {
  status_.show("llama.cpp: loading, choosing the faster type of cache");
  const std::function<bool()> stopped = [&] { return interrupt_.raised(); };
  const int length = static_cast<int>(tokens_.size());
  LlamaBaseline llama({.path = options_.model,
                       .threads = run_.common.threads,
                       .context = length + options_.steps,
                       .random = false,
                       .stopped = stopped});
  try {
    using Test = LlamaBaseline::Test;
    status_.show(fmt::format("llama.cpp: prefilling the same {} tokens", length));
    llama.prepare(Test::Decode, tokens_, 1);
    BenchCase which = row_case("llama.cpp", "full", 0);
    which.kv_type = llama.kv_type(Test::Prefill);
    rows_.push_back(prefill_row(run_, which, {llama.prepared_seconds()}));
    which = row_case("llama.cpp", "full", length);
    which.kv_type = llama.kv_type(Test::Decode);
    rows_.push_back(decode_row(run_, which, llama.decode(options_.steps, 1), full_attention_bytes(run_, length)));
  } catch (const Error&) {
    interrupt_.check();  // libllama reports that it was told to stop as a failure
    throw;
  }
  status_.clear();
}

void Comparison::run() {
  status_.show("measuring the read stream");
  run_.limit = backend_->read_stream();
  status_.clear();
  note(fmt::format("{} tokens of {} and the question", tokens_.size(), options_.file));
  std::set<std::string> said;
  for (const BenchPlan& plan : plans_) {
    const std::string words = describe(plan.plan, plan.source, model_.hp);
    if (plan.plan.has_sparse() && said.insert(words).second) note(words);
  }
  {
    Sequence document = engine_->create();
    prefill(document);
    for (const BenchPlan& plan : plans_) plan.exact ? answer_exactly(plan, document) : answer(plan, document);
  }
  if (!options_.baseline.empty()) {
    engine_.reset();  // one engine at a time, in memory too
    baseline();
  }
  write_out("\n" + markdown_table(rows_));
  const std::string device = backend_->device();
  const std::string where =
      device.empty() ? fmt::format("{} threads on {}", run_.common.threads, processor_name()) : device;
  write_out(
      fmt::format("\n{}; prefill measured once, decode: medians of {} steps; the limit, this machine's read stream: "
                  "{:.1f} GB/s.\n",
                  where, options_.steps, run_.limit));
}

}  // namespace

void add_compare_command(CLI::App& app) {
  const auto options = std::make_shared<CompareOptions>();
  CLI::App* command =
      app.add_subcommand("compare", "Ask about a document with several kinds of attention, and measure them");
  command->add_option("-m,--model", options->model, "GGUF model file")->envname("TIDAL_MODEL")->required();
  command->add_option("-f,--file", options->file, "The document, a text file")->required();
  command->add_option("-p,--prompt", options->question, "The question about it")->required();
  command->add_option("-n,--predict,--n-predict", options->steps, "Most tokens of an answer")->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads (default: all processors)")->envname("TIDAL_THREADS");
  add_backend_options(*command, options->backend);
  add_kv_options(*command, options->kv);
  command->add_option("--attention", options->attention, kBenchAttentionHelp)->type_name("WORD,...");
  add_chat_template_options(*command, options->chat_template);
  command->add_flag("--raw", options->raw, "Text as it is, without the model's chat template");
  command->add_option("--baseline", options->baseline, "Also measure another engine on the same text: llama.cpp");
  add_plan_options(*command, options->plan);
  add_window_option(*command, options->whole_windows);
  command->callback([options] {
    find_plan_file(options->plan, options->model);
    Comparison(*options).run();
  });
}

}  // namespace tidal
