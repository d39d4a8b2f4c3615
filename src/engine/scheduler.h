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
  int64_t decoded_tokens = 0;
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;  ///< the job's own wall time
  int64_t decode_bytes = 0;  ///< that decoding had to read: K/V by the plan, and its share of the weights
  std::string error;
};

/// One prompt to be continued.
struct Job {
  std::vector<Token> prompt;      ///< 1 to the engine's context
  int64_t most = -1;              ///< tokens; -1: until it ends
  std::optional<Plan> plan = {};  ///< nullopt: the engine's
  int exact = 0;                  ///< most drafts of a round of exact mode; 0: decodes by the plan
  bool use_cache = true;          ///< begins with what the prefix cache holds
  std::unique_ptr<TokenChooser> chooser;

  /// Called by the thread that runs the scheduler. None may call the scheduler.
  std::function<void(int done, int total)> prefilled = {};  ///< tokens in the cache, `total` the prompt's; may be empty
  std::function<bool(Token token)> token;  ///< every token of the text, without the one that ends it; false: no more
  std::function<void(JobEnd end, const JobReport& report)> finished;  ///< once, last
};

struct SchedulerOptions {
  int queue = 256;        ///< most jobs that wait
  int prefill_share = 0;  ///< most prompt tokens of a step beside running sequences; 0: the engine's chunk
};

/// What the scheduler holds, for metrics.
struct SchedulerState {
  int running = 0, waiting = 0;
  int free_blocks = 0, cached_blocks = 0, blocks = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, decoded_tokens = 0, preemptions = 0, jobs = 0;
  double prefill_seconds = 0, decode_seconds = 0;
};

using JobId = uint64_t;

/// Runs jobs on an engine, as many at once as EngineOptions::sequences. Each step decodes a token of every running
/// sequence, beside at most a chunk of prompts. When the pool runs out, cached prefixes go first, then the youngest
/// sequence waits and is computed again. Not thread-safe: SchedulerThread is.
class Scheduler {
 public:
  Scheduler(Engine& engine, const SchedulerOptions& options);
  ~Scheduler();

  /// False when the queue is full; the job is then as it was. Throws Error for a job that can never run.
  bool submit(JobId id, Job& job);
  /// Its blocks are back when this returns; finished() has been called. Unknown jobs are left alone.
  void cancel(JobId id);
  bool idle() const;
  /// One step; does nothing when idle.
  void step();
  SchedulerState state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A scheduler that a thread of its own runs. All functions may be called by any thread.
class SchedulerThread {
 public:
  SchedulerThread(Engine& engine, const SchedulerOptions& options);
  /// Cancels what still runs.
  ~SchedulerThread();

  /// nullopt when the queue is full. Throws Error for a job that can never run (a prompt that is empty or longer than
  /// the context, a plan that does not fit the model).
  std::optional<JobId> submit(Job job);
  /// Noticed before the next step.
  void cancel(JobId id);
  SchedulerState state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidal
