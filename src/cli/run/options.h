// The flags of `tidal run`, named and meant as in llama.cpp where it has them.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "cli/options/backend_options.h"
#include "cli/options/chat_template_options.h"
#include "cli/options/generation_options.h"
#include "cli/options/kv_options.h"
#include "cli/options/plan_options.h"
#include "cli/options/window_options.h"
#include "text/sampler.h"

namespace tidal {

struct RunOptions {
  std::string model;
  std::string prompt, prompt_file;  ///< at most one is given; "" may have been given
  const CLI::Option* prompt_option = nullptr;
  const CLI::Option* prompt_file_option = nullptr;
  int predict = -1;  ///< most tokens of an answer; -1: until it ends
  /// Positions; 0: what the model was trained for; nullopt: as many as the run can need, at most that.
  std::optional<int> context;
  std::optional<int> threads;
  std::optional<int> chunk;    ///< tokens of one prefill pass
  bool whole_windows = false;  ///< layers with a window keep the whole context
  int64_t seed = -1;
  SamplerOptions sampler;
  std::string grammar, grammar_file;
  bool ignore_end = false;
  bool chat = false, interactive = false;
  std::string system;
  ChatTemplateOptions chat_template;
  ExactOption exact;
  PlanOptions plan;
  std::string save_plan;
  std::string session;  ///< file; "" for none
  BackendOptions backend;
  KvOptions kv;

  bool has_prompt() const { return prompt_option->count() > 0 || prompt_file_option->count() > 0; }
};

/// Adds the flags and their TIDAL_* variables. `options` must outlive the parsing.
void add_run_options(CLI::App& app, RunOptions& options);
/// Throws Error for flags that contradict each other or are out of range by themselves.
void check(const RunOptions& options);

/// The prompt of -p, -f or else all of stdin, without the line break at the end of a file. Throws Error when it cannot
/// be read or is empty.
std::string read_prompt(const RunOptions& options);
/// What the sampler is made of, with the grammar read and the seed drawn; `context` stands for a repeat-last-n of -1.
/// Throws Error when the grammar cannot be read.
SamplerOptions sampler_options(const RunOptions& options, int context);

}  // namespace tidal
