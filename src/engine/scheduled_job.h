// One job of the scheduler: its text so far, its sequence while it runs, and what it is to do next.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/timer.h"
#include "engine/scheduler.h"

namespace tidal {

enum class JobPhase { Waiting, Prefill, Decode };

/// Where its prompt is cut into chunks depends on the job alone, and text that was given out before it was preempted is
/// computed again by the arithmetic that computed it first: it goes on with the same K/V, bit for bit.
class ScheduledJob {
 public:
  /// A checked job, the `arrival`-th. The engine must outlive it.
  ScheduledJob(Engine& engine, JobId id, uint64_t arrival, Job&& job);

  JobId id() const { return id_; }
  uint64_t arrival() const { return arrival_; }
  Job& job() { return job_; }
  TokenChooser& chooser() { return *job_.chooser; }
  const Plan& plan() const { return plan_; }
  bool exact() const { return exact_ != nullptr; }
  /// The prompt and the text so far; the last of the text is not in the cache yet.
  std::span<const Token> tokens() const { return tokens_; }
  JobReport& report() { return report_; }
  /// Whether begin() was called.
  bool begun() const { return begun_; }
  /// Whether it has a sequence.
  bool running() const { return sequence_.has_value(); }
  Sequence& sequence() { return *sequence_; }

  /// Begins to run, or goes on, with what `cache` has of its tokens.
  void begin(PrefixCache& cache);
  /// Lets go of a part of a cached block, so that its blocks are no more than its tokens need.
  void begin_at_whole_block();
  /// Gives its blocks back, to be begun again later.
  void wait();

  bool prefilling() const { return sequence_->length() < target(); }
  /// Whether the token behind the first `length` is known already.
  bool known(int length) const { return length < static_cast<int>(tokens_.size()); }
  bool has_text() const { return static_cast<int>(tokens_.size()) > prompt_; }
  int prompt() const { return prompt_; }
  /// Tokens of its next chunk, when it gets as many as it likes.
  int chunk() const;
  Engine::Request prefill_request(int count);
  Engine::Request decode_request();
  /// Blocks that the request takes from the pool, or a round of exact mode.
  int missing_blocks(const Engine::Request& request) const;
  int missing_blocks_of_round() const;
  /// Blocks that it is going to need for what it has now, and `more` tokens.
  int missing_blocks(int more) const;

  /// Takes the next token of the text. Returns how the job ends when this was the last. Throws what the listener
  /// throws.
  std::optional<JobEnd> take(Token token);
  /// A round of exact mode, in the same way.
  std::optional<JobEnd> advance_exact();
  /// Begins another phase; the report gets the time of the last one.
  void enter(JobPhase phase);

  uint64_t turn = 0;  ///< when it had its last prefill chunk: the one that waits longest is next

 private:
  /// Positions that are to be prefilled before it decodes.
  int target() const;

  Engine& engine_;
  JobId id_;
  uint64_t arrival_;
  Job job_;
  Plan plan_;
  bool clean_only_;
  std::vector<Token> tokens_;
  int prompt_;
  int start_ = 0;  // of the first chunk: what the cache had at the very first
  bool begun_ = false;
  std::optional<Sequence> sequence_;
  std::unique_ptr<ExactDecoder> exact_;
  JobReport report_;
  JobPhase phase_ = JobPhase::Waiting;
  Timer timer_;
};

}  // namespace tidal
