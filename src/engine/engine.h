// The engine: sequences in, logits out.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine_memory.h"
#include "engine/kv_pool.h"
#include "engine/sequence.h"
#include "engine/slot_tables.h"
#include "model/forward.h"
#include "model/model.h"
#include "model/plan.h"

namespace tidal {

/// Decodes token sequences on one backend. Not thread-safe. The backend and the model must outlive it.
class Engine {
 public:
  /// Throws Error for a plan that does not fit the model and when memory is short.
  Engine(Backend& backend, const Model& model, const Plan& plan, const EngineOptions& options);

  const Model& model() const { return model_; }
  const EngineOptions& options() const { return options_; }
  /// Most tokens of one prefill chunk.
  int chunk() const { return *options_.chunk; }
  const Plan& plan() const { return plan_; }
  /// Decodes by another plan from the next step on. Throws Error when it does not fit the model.
  void set_plan(const Plan& plan);
  /// Makes room for the selections of `plan`, and for sketches where it scans, as the first step by it would. Throws
  /// Error when memory is short.
  void reserve_selection(const Plan& plan);
  KvPool& pool() { return *pool_; }
  const KvPool& pool() const { return *pool_; }

  /// An empty sequence with room for options().context tokens, so that decoding it allocates nothing.
  Sequence create() { return Sequence(*pool_, options_.context); }

  /// What one sequence does in a step.
  struct Request {
    Sequence* sequence = nullptr;
    std::span<const Token> tokens;  ///< appended; at most chunk()
    bool decode = false;            ///< one token, decoded by the plan; otherwise a dense chunk
    bool all_logits = false;        ///< logits of every token of the chunk instead of the last one's
    /// This many of the polluted tokens, from clean() on, come first in the dense chunk, which so computes their K/V
    /// again: all of them where `tokens` follow. With none to follow and without all_logits there are no logits.
    int correct = 0;
    const Plan* plan = nullptr;  ///< decodes by this plan instead of the engine's
  };
  /// One forward pass over all requests (each of another sequence), after a correction of those whose plan has one due.
  /// At most chunk() + sequences - 1 tokens: a chunk, and a decoded token of every other sequence.
  /// Returns the logits [rows that asked, vocab] in the order of the requests, valid until the next step. Throws Error
  /// for requests that cannot be run and when the pool is exhausted; then no sequence has lost or gained a token.
  std::span<const float> step(std::span<const Request> requests);
  /// The same, but only the `count` most likely tokens come out, in the order of select_likely(): [rows that asked,
  /// count]. Logits need not leave the device for it. `count` is 1 to most_likely().
  std::span<const LikelyToken> step(std::span<const Request> requests, int count);
  int most_likely() const { return std::min(kMostLikely, model_.hp.vocab); }

  /// Cache correction: computes the K/V of all polluted tokens again, densely, chunk by chunk. What an error leaves
  /// undone stays polluted.
  void correct(Sequence& sequence);

  /// How many tokens of a prompt of `count` may come from a cache: the last one must be computed, for its logits, and
  /// beside it as many as take the way of prefill. Those few that a chunk of Backend::decode_rows() computes otherwise
  /// would not be what they are without the cache. Hybrids begin at the ends of blocks, where prompt_rows() cuts in any
  /// case: there all but the last token may.
  int reusable(int count) const;

  /// How many tokens the next chunk of a prompt has, at most `rows`, when that is from `position` on and `last` where
  /// the prompt ends there. For hybrids a last chunk is cut at the last end of a block before its last token: who has
  /// the same prompt, or begins with it, may go on from a state there.
  int prompt_rows(int position, int rows, bool last) const;
  /// How many of `rows` tokens of decoded text from `position` on a dense chunk takes in: for hybrids up to where
  /// decoding token by token leaves a state that others may go on from.
  int text_rows(int position, int rows) const;

  /// Appends `tokens` densely, chunk by chunk; returns the last token's logits. Where the plan corrects, polluted
  /// tokens are corrected first. `progress(done)` after every chunk; returning false stops early (the sequence then
  /// holds `done` tokens more).
  std::span<const float> prefill(Sequence& sequence, std::span<const Token> tokens,
                                 const std::function<bool(int done)>& progress = {});
  /// Appends one token by the plan; returns its logits, or its `count` most likely successors.
  std::span<const float> decode(Sequence& sequence, Token token);
  std::span<const LikelyToken> decode(Sequence& sequence, Token token, int count);

  /// Bytes that a decode step of one sequence with `context` positions must read: weights, and K/V by the plan (at
  /// most, where top_p decides).
  int64_t decode_bytes(int context) const { return decode_bytes(context, plan_); }
  int64_t decode_bytes(int context, const Plan& plan) const;

  /// Has every forward pass watched; null for none.
  void set_observer(ForwardObserver* observer) { observer_ = observer; }

  /// Truncates a sequence of clean tokens, and computes again now what its next pass would begin with: nothing, but for
  /// hybrids and where layers keep their window only.
  void go_back(Sequence& sequence, int length);

  /// Appends `count` positions with random K/V (a partly filled block is overwritten whole), for benchmarks that need a
  /// long context but not its content.
  void fill_random(Sequence& sequence, int count, uint64_t seed);

 private:
  void check(std::span<const Request> requests) const;
  const Plan& plan_of(const Request& request) const { return request.plan ? *request.plan : plan_; }
  /// Checks the requests and corrects what is due before them.
  void prepare(std::span<const Request> requests);
  /// One pass over the requests, sorted. `count`: as many likely tokens; 0: logits.
  void run(std::span<const Request> requests, int count);
  /// The pass itself, with room for it.
  void run_reserved(std::span<const Request> requests, int count);
  void add_chunk(const Request& request);
  // Of hybrids, and where layers keep their window only (engine_states.cpp); nothing otherwise.

  /// Has a pass be able to begin behind `position` tokens: from the nearest state, or blocks of windows, that there
  /// are, the tokens since run again, densely, which corrects those of them that are polluted.
  void restore(Sequence& sequence, int position);
  /// A dense chunk of `rows` tokens from `position` on, and the `rest` that was behind them once.
  void run_again(Sequence& sequence, int position, int rows, std::span<const Token> rest);
  /// Makes the live state one that the pass may write to; saved before where the pass may be taken back.
  void reserve_state(const Request& request);
  /// After the pass, and after the tokens were recorded: how they were computed, and on to its end.
  void record(Sequence& sequence, const Chunk& chunk);
  void end_state(Sequence& sequence, const Chunk& chunk);
  void end_windows(Sequence& sequence, const Chunk& chunk);
  /// What a step gave, `width` values a row, sorted back from the batch's order to the requests'.
  template <typename Value>
  std::span<const Value> in_request_order(std::span<const Request> requests, int width,
                                          const std::vector<Value>& values, std::vector<Value>& reordered) const;

  Backend& backend_;
  const Model& model_;
  Plan plan_;
  EngineOptions options_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<Forward> forward_;
  std::vector<float> logits_;
  std::vector<LikelyToken> likely_;
  ForwardObserver* observer_ = nullptr;

  // Of the step in progress; members so that a decode step allocates nothing.
  std::vector<const Request*> order_;
  std::vector<Token> tokens_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> logit_rows_;
  std::vector<Chunk> chunks_;
  SlotTables tables_;
  std::vector<float> reordered_;
  std::vector<LikelyToken> reordered_likely_;
};

}  // namespace tidal
