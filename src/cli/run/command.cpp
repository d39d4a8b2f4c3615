#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/output.h"
#include "cli/console/terminal.h"
#include "cli/console/text_file.h"
#include "cli/options/plan_text.h"
#include "cli/options/thread_count.h"
#include "cli/run/chat.h"
#include "cli/run/options.h"
#include "cli/run/session.h"
#include "core/error.h"
#include "core/utf8.h"
#include "model/fingerprint.h"
#include "model/load.h"

namespace tidal {
namespace {

/// Everything that a conversation needs, made from the flags.
class Run {
 public:
  explicit Run(const RunOptions& options);

  /// Answers `prompt` and is done. Throws Stopped when a signal ended that.
  void once(const std::string& prompt);
  /// Answers `first`, unless it is empty, then every line of stdin.
  void interactive(const std::string& first);

 private:
  /// What the cache and the rest will take, as far as the flags tell before the prompt is read.
  int64_t memory_beside(const Hyperparameters& hp) const;
  EngineOptions engine_options(int context) const;
  void make_engine(int context);
  void tell_plan() const;
  /// One prompt: all of the conversation, by the chat template or as it is.
  std::vector<Token> prompt_tokens(const std::string& text) const;
  /// As many positions as this prompt and its answer can need.
  int context_for(size_t prompt_tokens) const;
  Generator::Listener listener(const Interrupt& interrupt);
  /// Goes on with what the session has of `tokens`; returns how many of them that is.
  size_t resume(std::span<const Token> tokens);
  void keep_session();
  /// Ends the answer's line and says how it ended and how fast it was.
  void close(const Answer& answer);
  /// Answers one message of an interactive chat; its errors are told, not thrown.
  /// Throws Stopped when a signal other than Ctrl-C came.
  void turn(Chat& chat, const std::string& message);
  /// Answers `first`, unless it is empty, then line after line.
  void chat_until_left(Chat& chat, const std::string& first, bool person);

  const RunOptions& options_;
  bool chat_;
  std::unique_ptr<Backend> backend_;
  KvPlace kv_place_;
  Model model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChosenPlan plan_;
  StatusLine status_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<RunSession> session_;  // null without --session
};

Run::Run(const RunOptions& options)
    : options_(options),
      chat_(options.chat || !options.system.empty()),
      backend_(open_backend(options.backend, thread_count(options.threads), options.model)),
      kv_place_(kv_place(options.kv, *backend_)),
      model_(load_model(options.model, *backend_, [&](const Hyperparameters& hp) { return memory_beside(hp); })),
      tokenizer_(std::make_unique<Tokenizer>(open_tokenizer(options.model, model_.hp))) {
  const Hyperparameters& hp = model_.hp;
  use_chat_template(*tokenizer_, options.chat_template);
  const int context = options.context.value_or(0);
  warn_of_long_context(context, hp.context);
  if (options.plan.attention != "full") check_budget(options.plan, context > 0 ? context : hp.context);
  plan_ = choose_plan(options.plan, hp);
  if (!options.session.empty() && !options.whole_windows) tell_whole_windows("--session", hp);
}

int64_t Run::memory_beside(const Hyperparameters& hp) const {
  const int given = options_.context.value_or(std::min(hp.context, std::max(options_.predict, 1)));
  return least_memory(*backend_, hp, choose_plan(options_.plan, hp).plan,
                      engine_options(given > 0 ? given : hp.context))
      .total();
}

EngineOptions Run::engine_options(int context) const {
  EngineOptions options{.context = context, .chunk = options_.chunk};
  options.kv_type = kv_type(options_.backend.cache);
  options.whole_windows = options_.whole_windows || !options_.session.empty();
  options.kv_place = kv_place_;
  return options;
}

void Run::make_engine(int context) {
  sampler_ = std::make_unique<Sampler>(*tokenizer_, sampler_options(options_, context));
  const EngineOptions options = engine_options(context);
  plan_ = choose_plan(options_.plan, model_.hp, full_below_of(*backend_, model_.hp, options));
  if (!options_.save_plan.empty()) save_plan(options_.save_plan, plan_.plan, model_.hp);
  engine_ = std::make_unique<Engine>(*backend_, model_, plan_.plan, options);
  tell_kv_place(engine_->pool());
  generator_ = std::make_unique<Generator>(*engine_, *tokenizer_, *sampler_);
  if (options_.exact.given()) {
    if (options_.exact.drafts > context) {
      fail("--exact: {} drafts are more than the context of {}, expected at most that", options_.exact.drafts, context);
    }
    generator_->be_exact(options_.exact.drafts);
  }
  if (!options_.session.empty()) {
    session_ = std::make_unique<RunSession>(options_.session, model_fingerprint(options_.model), engine_->pool());
  }
}

size_t Run::resume(std::span<const Token> tokens) {
  if (!session_) return 0;
  std::optional<Sequence> known =
      session_->begin(*engine_, tokens, options_.exact.given() || engine_->plan().needs_clean());
  if (!known) return 0;
  const auto length = static_cast<size_t>(known->length());
  generator_->resume(std::move(*known));
  note(fmt::format("{}: {} of {} tokens are there", options_.session, length, tokens.size()));
  return length;
}

void Run::keep_session() {
  if (session_) session_->keep(generator_->sequence());
}

void Run::tell_plan() const { note(describe(plan_.plan, plan_.source, model_.hp)); }

std::vector<Token> Run::prompt_tokens(const std::string& text) const {
  if (!chat_) return tokenizer_->encode(text, true, true);
  warn_about_chat_template(*tokenizer_);
  std::vector<ChatMessage> messages;
  if (!options_.system.empty()) messages.push_back({"system", options_.system});
  messages.push_back({"user", text});
  return tokenizer_->encode(tokenizer_->apply_chat_template(messages, true), true, true);
}

int Run::context_for(size_t prompt_tokens) const {
  const int trained = model_.hp.context;
  int context = options_.context.value_or(0);
  if (context == 0) {
    context = trained;
    if (!options_.context && options_.predict >= 0) {
      const int64_t needed = static_cast<int64_t>(prompt_tokens) + options_.predict;
      context = static_cast<int>(std::clamp<int64_t>(needed, 1, trained));
    }
  }
  if (prompt_tokens > static_cast<size_t>(context)) {
    fail("prompt: its {} tokens do not fit in a context of {}; -c makes it longer", prompt_tokens, context);
  }
  return context;
}

Generator::Listener Run::listener(const Interrupt& interrupt) {
  Generator::Listener listener;
  listener.prefilled = [this](int done, int total, double seconds) {
    if (done < total) {
      status_.show(fmt::format("prefill: {} of {} tokens, {:.0f} tok/s", done, total, done / seconds));
    } else {
      status_.clear();
    }
  };
  listener.text = [](std::string_view text) { write_out(text); };
  listener.stopped = [&interrupt] { return interrupt.raised(); };
  return listener;
}

void Run::close(const Answer& answer) {
  status_.clear();
  if (!answer.text.ends_with('\n')) write_out("\n");
  if (answer.end == AnswerEnd::ContextFull) {
    warn(fmt::format("the context of {} tokens is full and the answer cut; -c makes it longer",
                     engine_->options().context));
  }
  if (answer.end == AnswerEnd::Interrupted || answer.end == AnswerEnd::NotStarted) note("stopped");
  note(answer.speed.summary());
  if (const ExactStatistics* statistics = generator_->exact_statistics()) note(summary(*statistics));
}

void Run::once(const std::string& prompt) {
  const std::vector<Token> tokens = prompt_tokens(prompt);
  make_engine(context_for(tokens.size()));
  tell_plan();
  const Interrupt interrupt;
  const auto known = std::span(tokens).first(resume(tokens));
  sampler_->accept(known);
  close(generator_->answer(std::span(tokens).subspan(known.size()), options_.predict, listener(interrupt)));
  keep_session();
  interrupt.check();
}

void Run::turn(Chat& chat, const std::string& message) {
  const Interrupt interrupt;
  try {
    check_text(message, "message");
    close(chat.say(message, options_.predict, listener(interrupt)));
  } catch (const OutputError&) {
    throw;
  } catch (const Error& error) {
    status_.clear();
    warn(error.what());
  }
  if (interrupt.signal() != SIGINT) interrupt.check();  // Ctrl-C ends the answer alone
}

void Run::interactive(const std::string& first) {
  const int context = options_.context.value_or(0);
  make_engine(context > 0 ? context : model_.hp.context);
  if (session_) {
    const auto tokens = session_->tokens();
    resume(tokens.first(std::min(tokens.size(), static_cast<size_t>(engine_->options().context))));
  }
  Chat chat(*generator_, *tokenizer_, options_.system);
  warn_about_chat_template(*tokenizer_);
  tell_plan();
  const bool person = is_terminal(stdin);
  if (person) note("/clear starts a new conversation, Ctrl-C stops an answer, /exit or Ctrl-D leaves");
  chat_until_left(chat, first, person);
  keep_session();
  if (person) write_out("\n");
}

void Run::chat_until_left(Chat& chat, const std::string& first, bool person) {
  const bool colour = wants_colour(stdout);
  if (!first.empty()) turn(chat, first);
  for (std::string line;;) {
    if (person) write_out(colour ? "\033[1;32m> \033[0m" : "> ");
    if (!std::getline(std::cin, line)) break;
    if (line == "/exit") return;
    if (line == "/clear") {
      chat.clear();
    } else if (!line.empty()) {
      turn(chat, line);
    }
  }
}

void run(const RunOptions& options) {
  check(options);
  // A prompt from -p, -f or a pipe is answered once; a person at a terminal gets a chat.
  const bool interactive = options.interactive || (!options.has_prompt() && is_terminal(stdin));
  const std::string prompt = interactive && !options.has_prompt() ? "" : read_prompt(options);
  // Better now than when the model is loaded.
  if (!options.session.empty()) check_sessions(read_hyperparameters(GgufFile::open(options.model)));
  Run run(options);
  if (interactive) {
    run.interactive(prompt);
  } else {
    run.once(prompt);
  }
}

}  // namespace

void add_run_command(CLI::App& app) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Continue a prompt, or chat");
  add_run_options(*command, *options);
  command->callback([options] {
    find_plan_file(options->plan, options->model);
    run(*options);
  });
}

}  // namespace tidal
