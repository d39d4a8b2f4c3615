// Choosing the next token, by libllama's samplers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/likely_tokens.h"
#include "text/tokenizer.h"

namespace tidal {

/// llama.cpp's names and defaults.
struct SamplerOptions {
  uint32_t seed = 0xFFFFFFFF;   ///< 0xFFFFFFFF: random
  float temperature = 0.8f;     ///< <= 0: greedy
  int top_k = 40;               ///< <= 0: off
  float top_p = 0.95f;          ///< 0 to 1; 1: off
  float min_p = 0.05f;          ///< 0 to 1; 0: off
  float repeat_penalty = 1.0f;  ///< > 0; 1: off
  float frequency_penalty = 0;  ///< taken off a logit for every time the token is there; 0: off
  float presence_penalty = 0;   ///< taken off the logits of tokens that are there; 0: off
  int repeat_last_n = 64;       ///< tokens that penalties look back; 0: off
  bool ignore_end = false;      ///< never choose a token that ends the answer
  std::string grammar{};        ///< GBNF text with a rule `root`, "" for none
  /// Where there are some, the grammar holds only from the first place on that one of these finds (regular expressions,
  /// ECMAScript's; from their first group on where they have one), or one of the tokens.
  std::vector<std::string> grammar_patterns{};
  std::vector<Token> grammar_tokens{};
  /// The marks of thoughts, in which those are not looked for: where the answer begins with the first of them, or the
  /// prompt has it already, up to the second. "": none.
  std::string thought_begin{}, thought_end{};
  bool in_thought = false;                            ///< the prompt ends with the first
  std::vector<Token> grammar_prefix{};                ///< the grammar begins with these, before what is sampled
  std::vector<std::pair<Token, float>> logit_bias{};  ///< added to logits before all else; -infinity: never chosen

  bool has_penalties() const {
    return repeat_last_n > 0 && (repeat_penalty != 1 || frequency_penalty != 0 || presence_penalty != 0);
  }
};

/// Samples in llama.cpp's default order: penalties, top-k, top-p, min-p, temperature. A grammar is asked about the
/// token that was sampled and restricts all candidates only when it refuses that one, as in llama.cpp.
class Sampler {
 public:
  /// `tokenizer` must outlive the sampler. Throws Error for options out of range and for a grammar that does not parse.
  Sampler(const Tokenizer& tokenizer, const SamplerOptions& options);
  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;
  ~Sampler();

  /// A second sampler in the same state: by equal logits it chooses what this one would.
  Sampler clone() const;

  /// Chooses a token by logits [vocab] and remembers it for penalties and grammar. Throws Error for NaN among the
  /// logits and when every token is ruled out, by the grammar or a logit of -infinity.
  Token sample(std::span<const float> logits);
  /// How many of the most likely tokens are enough to choose by; 0: penalties, a grammar or a missing or large top-k
  /// make it all logits.
  int likely() const;
  /// The same choice by the likely() most likely tokens, in their order. Equal logits go by that order, too.
  Token sample(std::span<const LikelyToken> tokens);
  /// Remembers tokens that were not sampled (of the prompt), for penalties.
  void accept(std::span<const Token> tokens);
  /// Starts the grammar anew; penalties and randomness go on.
  void restart_grammar();

 private:
  Sampler() = default;

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal
