// How one answer's tokens are chosen, and how likely they were.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "generation/sampler_chooser.h"

namespace tidal::server {

/// A token of an answer with its log-probability, and the likeliest ones at its place.
struct TokenLogprob {
  Token token = 0;
  float logprob = 0;
  std::vector<std::pair<Token, float>> top;
};

/// Owns its sampler. `top_logprobs`: so many of the likeliest are noted for every token; -1: nothing is.
class AnswerChooser final : public TokenChooser {
 public:
  /// `tokenizer` must outlive the chooser.
  AnswerChooser(Sampler sampler, const Tokenizer& tokenizer, int top_logprobs)
      : sampler_(std::move(sampler)), chooser_(sampler_, tokenizer), top_logprobs_(top_logprobs) {}

  int likely() const override { return top_logprobs_ < 0 ? chooser_.likely() : 0; }
  Token choose(const Prospects& next) override {
    const Token token = chooser_.choose(next);
    if (top_logprobs_ >= 0) note(next.logits, token);
    return token;
  }
  void begin_draft() override { chooser_.begin_draft(); }
  Token draft(const Prospects& next) override { return chooser_.draft(next); }
  bool ends(Token token) const override { return chooser_.ends(token); }

  /// What was noted since the last call, of the tokens chosen in their order.
  std::vector<TokenLogprob> take_logprobs() { return std::exchange(noted_, {}); }

 private:
  void note(std::span<const float> logits, Token token);

  Sampler sampler_;
  SamplerChooser chooser_;
  int top_logprobs_;
  std::vector<TokenLogprob> noted_;
};

}  // namespace tidal::server
