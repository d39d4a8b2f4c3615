#include "cli/serve/options.h"

#include <limits>
#include <sstream>

#include "cli/console/text_file.h"
#include "core/error.h"

namespace tidal {
namespace {

void add_server_options(CLI::App& app, ServeOptions& options) {
  const auto add = [&](const char* names, auto& value, const char* what, const char* variable) {
    return app.add_option(names, value, what)->envname(variable)->group("Server");
  };
  add("--host", options.host, "Address to listen on", "TIDAL_HOST")->capture_default_str();
  add("--port", options.port, "Port, 0 for one that is free", "TIDAL_PORT")->capture_default_str();
  add("-a,--alias", options.alias, "The model's name for clients (default: its file's)", "TIDAL_ALIAS");
  add("--api-key", options.api_keys, "Key that clients must have; may be given several times", "TIDAL_API_KEY")
      ->delimiter(',')
      ->type_name("KEY");
  add("--api-key-file", options.api_key_file, "Keys from a file, one a line", "TIDAL_API_KEY_FILE")->type_name("FILE");
  add("--allow-origin", options.allowed_origins, "Lets the web pages of this origin ask", "TIDAL_ALLOW_ORIGIN")
      ->delimiter(',')
      ->type_name("ORIGIN");
  add("--drain", options.drain, "Seconds that answers get to end when the server is stopped", "TIDAL_DRAIN")
      ->capture_default_str();
  app.add_flag("--log-requests", options.log_requests, "A line on stderr for every request, without its content")
      ->group("Server");
}

void add_batch_options(CLI::App& app, ServeOptions& options) {
  const auto add = [&](const char* names, auto& value, const char* what, const char* variable) {
    return app.add_option(names, value, what)->envname(variable)->type_name("N")->group("Batch");
  };
  add("-c,--ctx-size", options.context, "Most tokens of a request and its answer, 0 for what the model was trained for",
      "TIDAL_CTX_SIZE")
      ->capture_default_str();
  add("--parallel", options.parallel, "Most answers in progress", "TIDAL_PARALLEL")->capture_default_str();
  add("--cache-tokens", options.cache_tokens,
      "Tokens of all answers and of cached prompts together (default: twice the context)", "TIDAL_CACHE_TOKENS");
  app.add_option("--cache-dir", options.cache_dir, "Folder that keeps texts beyond memory and beyond the server's end")
      ->envname("TIDAL_CACHE_DIR")
      ->type_name("DIR")
      ->group("Batch");
  app.add_option("--cache-size", options.cache_size,
                 "Most bytes of it, the least recently used go first (default: 20G)")
      ->envname("TIDAL_CACHE_SIZE")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("SIZE")
      ->group("Batch");
  add("--queue", options.queue, "Most requests that wait; more are refused (429)", "TIDAL_QUEUE")
      ->capture_default_str();
  add("--prefill-share", options.prefill_share,
      "Most prompt tokens of a step beside answers in progress (default: those of a prefill pass)",
      "TIDAL_PREFILL_SHARE");
  add("-t,--threads", options.threads, "Threads (default: all processors)", "TIDAL_THREADS");
  add("--ubatch-size", options.chunk, "Tokens of one prefill pass (default: 512, on a GPU 2048)", "TIDAL_UBATCH_SIZE");
  add_window_option(app, options.whole_windows, "Batch");
}

}  // namespace

void add_serve_options(CLI::App& app, ServeOptions& options) {
  app.add_option("-m,--model", options.model, "GGUF model file")->envname("TIDAL_MODEL")->type_name("FILE")->required();
  add_server_options(app, options);
  add_batch_options(app, options);
  add_backend_options(app, options.backend);
  add_kv_options(app, options.kv);
  add_sampling_options(app, options.sampler, options.seed, "Sampling, by default");
  add_chat_template_options(app, options.chat_template);
  add_attention_option(app, options.plan, "full|tidal|sketch");
  add_exact_option(app, options.exact);
  add_plan_options(app, options.plan);
}

void check(const ServeOptions& options) {
  const auto need = [](const char* flag, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) fail("{}: {} given, expected {} to {}", flag, value, least, most);
  };
  constexpr int kMost = std::numeric_limits<int>::max();
  need("--port", options.port, 0, 65535);
  need("--drain", options.drain, 0, 86400);
  need("--ctx-size", options.context, 0, kMost);
  need("--parallel", options.parallel, 1, 1024);
  need("--cache-tokens", options.cache_tokens, 0, int64_t{1} << 40);
  need("--cache-size", static_cast<int64_t>(std::min(options.cache_size, uint64_t{1} << 62)), 0, int64_t{1} << 60);
  need("--queue", options.queue, 0, 1 << 20);
  need("--prefill-share", options.prefill_share, 0, kMost);
  need("--ubatch-size", options.chunk.value_or(1), 1, kMost);
  check_sampling(options.sampler, options.seed);
  check_kind(options.plan);
  if (options.exact.given()) need("--exact", options.exact.drafts, 1, 64);
  check_exact(options.exact, options.plan);
}

std::vector<std::string> read_api_keys(const ServeOptions& options) {
  std::vector<std::string> keys;
  for (const std::string& key : options.api_keys) {
    if (key.empty()) fail("--api-key: it is empty, expected a key");
    keys.push_back(key);
  }
  if (options.api_key_file.empty()) return keys;
  std::istringstream lines(read_text_file(options.api_key_file));
  const size_t before = keys.size();
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) keys.push_back(line);
  }
  if (keys.size() == before) fail("{}: holds no key, expected one a line", options.api_key_file);
  return keys;
}

}  // namespace tidal
