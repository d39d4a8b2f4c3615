// The flags of `tidal serve`, named and meant as llama-server's where it has them.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/options/backend_options.h"
#include "cli/options/chat_template_options.h"
#include "cli/options/generation_options.h"
#include "cli/options/kv_options.h"
#include "cli/options/plan_options.h"
#include "cli/options/window_options.h"
#include "text/sampler.h"

namespace tidal {

struct ServeOptions {
  std::string model;
  std::string alias;  ///< the model's name for clients; "": its file's
  std::string host = "127.0.0.1";
  int port = 8080;
  std::vector<std::string> api_keys;
  std::string api_key_file;  ///< one key a line
  std::vector<std::string> allowed_origins;
  int drain = 30;  ///< seconds
  bool log_requests = false;

  int context = 0;           ///< of one request; 0: what the model was trained for
  int parallel = 4;          ///< sequences in one step
  int64_t cache_tokens = 0;  ///< positions of all sequences and of the prefix cache; 0: twice the context
  std::string cache_dir;     ///< where texts are kept that have no room in memory, and all at the end; "": nowhere
  uint64_t cache_size = uint64_t{20} << 30;  ///< bytes of them
  int queue = 256;
  int prefill_share = 0;  ///< prompt tokens of a step beside running answers; 0: a whole chunk
  std::optional<int> threads;
  std::optional<int> chunk;
  bool whole_windows = false;  ///< layers with a window keep the whole context

  int64_t seed = -1;
  SamplerOptions sampler;
  ChatTemplateOptions chat_template;
  ExactOption exact;
  PlanOptions plan;
  BackendOptions backend;
  KvOptions kv;
};

/// Adds the flags and their TIDAL_* variables. `options` must outlive the parsing.
void add_serve_options(CLI::App& app, ServeOptions& options);
/// Throws Error for flags that contradict each other or are out of range by themselves.
void check(const ServeOptions& options);
/// Those of --api-key and of the file. Throws Error when it cannot be read or holds none.
std::vector<std::string> read_api_keys(const ServeOptions& options);

}  // namespace tidal
