// What all evaluations share: the model, the plans, the rows and where they are kept, progress.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/console/interrupt.h"
#include "cli/console/terminal.h"
#include "cli/eval/plans.h"
#include "cli/options/backend_options.h"
#include "cli/options/kv_options.h"
#include "core/timer.h"
#include "core/whole_file.h"
#include "engine/engine.h"
#include "eval/text_places.h"
#include "report/result_file.h"
#include "text/tokenizer.h"

namespace tidal {

struct EvalFlags {
  std::string model;
  std::optional<int> threads;
  BackendOptions backend;
  KvOptions kv;
  EvalPlanFlags plans;
  std::string output, svg;
};

/// The flags of every evaluation. `flags` must outlive the parsing.
void add_eval_flags(CLI::App& app, EvalFlags& flags);

/// How much a step of one sequence counts in the progress, beside a prefilled token: about what it takes in a batch.
constexpr int kStepWork = 4;
constexpr int kStepSequences = 8;  // that decode in one step

class EvalSession {
 public:
  using Json = ResultFile::Json;

  /// Loads the model and makes the plans; `flags` must outlive it. Throws Error for flags that are wrong, before any
  /// work is done.
  explicit EvalSession(const EvalFlags& flags);
  ~EvalSession();

  Backend& backend() { return *backend_; }
  /// Of every engine.
  KvPlace place() const { return place_; }
  const Model& model() const { return model_; }
  /// Of the KV cache.
  KvType kv_type() const { return tidal::kv_type(flags_.backend.cache); }
  /// For titles.
  std::string model_name() const;
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  /// Full attention first.
  const std::vector<EvalPlan>& plans() const { return plans_; }
  /// EngineOptions::later_plans.
  std::vector<Plan> later_plans() const;

  /// The file's text in tokens; "" stands for kjv.txt beside the model. Throws Error for a file that cannot be read or
  /// is empty.
  TextTokens read_text(const std::string& file) const;
  /// Warns when prompts are longer than what the model was trained for.
  void check_context(int64_t length) const;

  /// Opens the rows of an earlier run, or begins new ones: `task` and `settings` are what must be the same for rows to
  /// belong together. Throws Error when they are of another run, and when no picture can be written.
  void open(const std::string& task, const Json& settings);
  /// The finished row with these fields; nullptr when there is none. Valid until the next add().
  const Json* find(const Json& key) const;
  /// Adds a row: `key`, then `values`.
  void add(Json key, const Json& values);

  /// Units of work that this run has to do; one line says how far it is from then on.
  void begin(int64_t work);
  /// So much is done. Throws Stopped when Ctrl-C was pressed or the like.
  void advance(int64_t work);

  /// Whether a picture is wanted.
  bool draws() const { return picture_ != nullptr; }
  /// Writes the picture, says where everything is.
  void draw(const std::string& svg);
  /// Writes to stdout with the progress line gone.
  void print(const std::string& text);

 private:
  const EvalFlags& flags_;
  std::unique_ptr<Backend> backend_;
  KvPlace place_;
  Model model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<EvalPlan> plans_;
  std::string svg_;
  std::unique_ptr<WholeFile> picture_;
  std::optional<ResultFile> file_;
  std::vector<Json> rows_;  // without a file
  std::string task_;
  int64_t work_ = 0, done_ = 0;
  Timer timer_;
  Interrupt interrupt_;
  StatusLine status_;
};

/// A number of a row; one that was not finite is null there and NaN here.
double number(const ResultFile::Json& value);

/// Runs an evaluation and says, when it ends early, what becomes of its rows.
void run_eval(const EvalFlags& flags, const std::function<void(EvalSession&)>& evaluate);

}  // namespace tidal
