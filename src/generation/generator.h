// One conversation with the engine: prompts in, text out, and how fast that went.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/exact.h"
#include "generation/sampler_chooser.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace tidal {

/// Work done and the time that it took.
struct Speed {
  int64_t prefill_tokens = 0;
  double prefill_seconds = 0;
  int64_t decode_tokens = 0;  ///< decoded: the first token of an answer comes from the prefill
  double decode_seconds = 0;  ///< of the steps, sampling included
  int64_t decode_bytes = 0;   ///< read by all steps: weights, and K/V by the plan

  /// Both rates, the bytes read per token and GB/s, in one line.
  std::string summary() const;
};

/// What exact mode did, in one line.
std::string summary(const ExactStatistics& statistics);

/// How an answer ended.
enum class AnswerEnd {
  EndToken,
  Limit,  ///< as many tokens as were asked for
  ContextFull,
  Interrupted,
  NotStarted,  ///< interrupted during prefill: the conversation is what it was before
};

struct Answer {
  std::string text;
  AnswerEnd end = AnswerEnd::EndToken;
  Speed speed;
};

class Generator {
 public:
  struct Listener {
    std::function<void(int done, int total, double seconds)> prefilled;  ///< tokens, after every chunk
    std::function<void(std::string_view)> text;                          ///< whole characters of the answer
    std::function<bool()> stopped;                                       ///< asked after every chunk and token
  };

  /// All must outlive the generator.
  Generator(Engine& engine, const Tokenizer& tokenizer, Sampler& sampler);

  /// Answers in exact mode from now on, with up to `drafts` drafts a round.
  void be_exact(int drafts) { exact_ = std::make_unique<ExactDecoder>(engine_, ExactOptions{.drafts = drafts}); }
  /// Null unless in exact mode.
  const ExactStatistics* exact_statistics() const { return exact_ ? &exact_->statistics() : nullptr; }

  /// Tokens that still fit in behind the conversation.
  int room() const;
  /// The cached conversation.
  std::span<const Token> tokens() const { return sequence_.tokens(); }
  const Sequence& sequence() const { return sequence_; }
  /// Goes on with another conversation, which the engine's pool holds; the sampler does not learn of its tokens.
  void resume(Sequence sequence);
  /// Forgets all tokens from `length` on.
  void truncate(int length);

  /// Appends `prompt` and answers with at most `most` tokens (-1: no limit). Throws Error when the prompt is empty or
  /// longer than room(); then the conversation is what it was before.
  Answer answer(std::span<const Token> prompt, int most, const Listener& listener);

 private:
  /// Appends the pending token and chooses the next: one, or in exact mode up to `most`.
  std::span<const Token> decode(int most);

  Engine& engine_;
  const Tokenizer& tokenizer_;
  Sampler& sampler_;
  SamplerChooser chooser_;
  std::unique_ptr<ExactDecoder> exact_;
  Sequence sequence_;
  Token chosen_ = 0;
  std::vector<Token> pending_;  // the end of the last answer, when it is not in the cache yet
};

}  // namespace tidal
