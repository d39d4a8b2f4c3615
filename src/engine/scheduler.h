// Continuous batching: which sequences a step decodes and prefills. Knows nothing of text or of clients.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/exact.h"
#include "engine/prefix_cache.h"
#include "engine/read_counts.h"

namespace tidal {

/// How a job ended.
enum class JobEnd {
  EndToken,  ///< the chooser chose a token that ends
  Limit,     ///< as many tokens as were asked for
  Stopped,   ///< the listener wanted no more
  ContextFull,
  Cancelled,
  Failed,  ///< see JobReport::error
};

/// What a job cost.
struct JobReport {
  int cached_tokens = 0;  ///< of the prompt, found in the prefix cache
  int prompt_tokens = 0;
  int64_t decoded_tokens = 0;  ///< chosen after decode steps: the first token comes from the prefill
  /// The job's own wall time. A job that was preempted waits and prefills once more.
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
  int64_t decode_bytes = 0;  ///< that decoding had to read: K/V by the plan, and its share of the weights
  std::string error;
};

/// One prompt to be continued.
struct Job {
  std::vector<Token> prompt;      ///< 1 to the engine's context
  int64_t most = -1;              ///< tokens; -1: until it ends
  std::optional<Plan> plan = {};  ///< nullopt: the engine's when the job is submitted
  int exact = 0;                  ///< most drafts of a round of exact mode; 0: decodes by the plan
  bool use_cache = true;          ///< begins with what the prefix cache holds, where that is worth while
  std::unique_ptr<TokenChooser> chooser;

  /// Called by the thread that runs the scheduler. None may call the scheduler. What they or the chooser throw ends the
  /// job as Failed.
  std::function<void(int done, int total)> prefilled = {};  ///< tokens in the cache, `total` the prompt's; may be empty
  std::function<bool(Token token)> token;  ///< every token of the text, without the one that ends it; false: no more
  /// What the step that gives a token of the text has read; not for the first, which the prompt's last chunk gives. Of
  /// exact mode once a round, which reads everything. Where it is empty nothing is counted, which would take time.
  std::function<void(const StepReads& reads)> reads = {};
  std::function<void(JobEnd end, const JobReport& report)> finished;  ///< once, last
};

struct SchedulerOptions {
  int queue = 256;                   ///< most jobs that wait, beside as many as there are sequences without a job
  int prefill_share = 0;             ///< most prompt tokens of a step beside running sequences; 0: the engine's chunk
  SessionStore* sessions = nullptr;  ///< where texts go that memory has no room for, and all at the end; outlives it
};

/// What the scheduler holds and has done, for metrics.
struct SchedulerState {
  int running = 0, waiting = 0;
  int free_blocks = 0, cached_blocks = 0, blocks = 0;
  int free_window_blocks = 0, window_blocks = 0;  ///< of layers that keep their window only
  int64_t prompt_tokens = 0, cached_tokens = 0;   ///< of jobs that have begun to run; found in the prefix cache
  int64_t decoded_tokens = 0, preemptions = 0;
  int64_t jobs = 0;                                ///< that have ended
  double prefill_seconds = 0, decode_seconds = 0;  ///< of steps with and without tokens of prompts
};

using JobId = uint64_t;

/// Runs jobs on an engine, as many at once as EngineOptions::sequences. Each step decodes a token of every running
/// sequence, beside at most a chunk of prompts. When the pool runs out, cached prefixes go first, then the youngest
/// sequence waits and is computed again. Not thread-safe: SchedulerThread is.
///
/// A job's text does not depend on the others, but for what it takes from the prefix cache and where `prefill_share`
/// cuts prompts: these are the same numbers, rounded otherwise. Jobs that decode by full attention or in exact mode, or
/// whose plan corrects, take clean K/V only.
class Scheduler {
 public:
  /// The engine must outlive it; others may step the engine, too, between its steps. Throws Error for negative options.
  Scheduler(Engine& engine, const SchedulerOptions& options);
  /// Cancels what still runs, and writes what is cached to the sessions.
  ~Scheduler();

  /// Throws Error for a job that can never run: a prompt that is empty, longer than the context or outside the
  /// vocabulary, a plan that does not fit the model, something that is missing. May be called by any thread.
  static void check(const Engine& engine, const Job& job);

  /// Whether another job may be submitted in that state.
  static bool has_place(const Engine& engine, const SchedulerOptions& options, const SchedulerState& state);

  /// False when the queue is full; the job is then as it was. Throws Error as check().
  bool submit(JobId id, Job& job);
  /// Its blocks are back when this returns, those apart that the prefix cache keeps; finished() has been called.
  /// Unknown jobs are left alone.
  void cancel(JobId id);
  bool idle() const;
  /// One step; does nothing when idle. Throws nothing: errors end the jobs that they concern.
  void step();
  SchedulerState state() const;
  /// Forgets the cached prefixes.
  void clear_cache();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidal
