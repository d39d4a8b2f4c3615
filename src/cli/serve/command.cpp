// tidal serve: the model behind HTTP.
#include <sys/resource.h>

#include <chrono>
#include <memory>
#include <thread>

#include "cli/commands.h"
#include "cli/console/interrupt.h"
#include "cli/console/output.h"
#include "cli/console/text_file.h"
#include "cli/options/plan_text.h"
#include "cli/options/thread_count.h"
#include "cli/serve/options.h"
#include "core/error.h"
#include "core/utf8.h"
#include "engine/session_store.h"
#include "model/fingerprint.h"
#include "model/load.h"
#include "server/server.h"

namespace tidal {
namespace {

/// Everything behind the sockets, made from the flags while clients are told to wait.
class Loaded {
 public:
  explicit Loaded(const ServeOptions& options);

  server::Service& service() { return *service_; }
  std::string about() const;

 private:
  EngineOptions engine_options(const Hyperparameters& hp) const;
  /// Null without a folder for them.
  SessionStore* open_sessions();
  /// A request's own plan.
  Plan plan_for(const std::string& attention, const std::string& budget) const;

  const ServeOptions& options_;
  std::unique_ptr<Backend> backend_;
  KvPlace kv_place_;
  Model model_;
  Tokenizer tokenizer_;
  ChosenPlan plan_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<SessionStore> sessions_;
  std::unique_ptr<server::Service> service_;
};

EngineOptions Loaded::engine_options(const Hyperparameters& hp) const {
  EngineOptions options;
  options.context = options_.context > 0 ? options_.context : hp.context;
  options.tokens = options_.cache_tokens > 0 ? options_.cache_tokens : 2 * int64_t{options.context};
  options.chunk = options_.chunk;
  options.sequences = options_.parallel;
  options.kv_type = kv_type(options_.backend.cache);
  options.windows = 4;  // for what the prefix cache goes on with
  options.whole_windows = options_.whole_windows || !options_.cache_dir.empty();
  options.kv_place = kv_place_;
  return options;
}

Loaded::Loaded(const ServeOptions& options)
    : options_(options),
      backend_(open_backend(options.backend, thread_count(options.threads), options.model)),
      kv_place_(kv_place(options.kv, *backend_)),
      model_(load_model(
          options.model, *backend_,
          [&](const Hyperparameters& hp) {
            return least_memory(*backend_, hp, choose_plan(options_.plan, hp).plan, engine_options(hp)).total();
          })),
      tokenizer_(open_tokenizer(options.model, model_.hp)) {
  const Hyperparameters& hp = model_.hp;
  use_chat_template(tokenizer_, options.chat_template);
  const EngineOptions engine = engine_options(hp);
  warn_of_long_context(engine.context, hp.context);
  if (engine.tokens < engine.context) {
    fail("--cache-tokens: {} given, at least the context of {} is needed", engine.tokens, engine.context);
  }
  if (options.plan.attention != "full") check_budget(options.plan, engine.context);
  plan_ = choose_plan(options.plan, hp, full_below_of(*backend_, hp, engine));
  if (!options.cache_dir.empty() && !options.whole_windows) tell_whole_windows("--cache-dir", hp);
  engine_ = std::make_unique<Engine>(*backend_, model_, plan_.plan, engine);
  tell_kv_place(engine_->pool());
  server::ServiceParts parts{*engine_, tokenizer_};
  parts.scheduler = {.queue = options.queue, .prefill_share = options.prefill_share, .sessions = open_sessions()};
  parts.sampler = with_context(options.sampler, options.seed, engine.context);
  parts.model = options.alias.empty() ? file_name(options.model) : options.alias;
  parts.exact = options.exact.given() ? options.exact.drafts : 0;
  parts.make_plan = [this](const std::string& attention, const std::string& budget) {
    return plan_for(attention, budget);
  };
  service_ = std::make_unique<server::Service>(std::move(parts));
}

SessionStore* Loaded::open_sessions() {
  if (options_.cache_dir.empty()) return nullptr;
  sessions_ = std::make_unique<SessionStore>(
      engine_->pool(), SessionStoreOptions{.directory = options_.cache_dir,
                                           .most_bytes = static_cast<int64_t>(options_.cache_size),
                                           .model = model_fingerprint(options_.model),
                                           .warn = [](const std::string& text) { warn(text); }});
  note(fmt::format("{}: {} files of earlier texts, {:.1f} MB", options_.cache_dir, sessions_->files(),
                   static_cast<double>(sessions_->bytes()) / 1e6));
  return sessions_.get();
}

Plan Loaded::plan_for(const std::string& attention, const std::string& budget) const {
  PlanOptions plan = options_.plan;
  if (!attention.empty() && attention != plan.attention) {
    // The server's flags may be for its own kind alone.
    plan = {};
    plan.attention = attention;
    plan.budget = options_.plan.budget;
    if (attention == "full") plan.budget.reset();
  }
  if (!budget.empty()) plan.budget = budget;
  check_kind(plan);
  return choose_plan(plan, model_.hp, full_below_of(*backend_, model_.hp, engine_->options())).plan;
}

std::string Loaded::about() const { return describe(plan_.plan, plan_.source, model_.hp); }

/// A connection is a file to the system, and many systems begin with 1024 of them.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // where that is refused, fewer clients get in
}

void serve(const ServeOptions& options) {
  check(options);
  if (!options.cache_dir.empty()) check_sessions(read_hyperparameters(GgufFile::open(options.model)));
  raise_file_limit();
  server::ServerOptions server_options;
  server_options.http.host = options.host;
  server_options.http.port = options.port;
  server_options.api_keys = read_api_keys(options);
  server_options.allowed_origins = options.allowed_origins;
  if (options.log_requests) server_options.log = [](const std::string& line) { note(line); };
  const Interrupt interrupt;
  std::unique_ptr<Loaded> loaded;  // outlives the server
  server::Server server(std::move(server_options));
  loaded = std::make_unique<Loaded>(options);
  note(loaded->about());
  server.serve(loaded->service());
  const bool ipv6 = options.host.find(':') != std::string::npos;
  note(fmt::format("listening on http://{}{}{}:{}", ipv6 ? "[" : "", options.host, ipv6 ? "]" : "", server.port()));
  constexpr std::chrono::milliseconds kLook{50};
  while (!interrupt.raised()) std::this_thread::sleep_for(kLook);
  note("stopping");
  server.stop(std::chrono::seconds(options.drain));
}

}  // namespace

void add_serve_command(CLI::App& app) {
  const auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "Answer clients of OpenAI's API over HTTP");
  add_serve_options(*command, *options);
  command->callback([options] {
    find_plan_file(options->plan, options->model);
    serve(*options);
  });
}

}  // namespace tidal
