// Choosing the next token, by libllama's samplers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "text/tokenizer.h"

struct llama_sampler;

namespace tidal {

/// llama.cpp's names and defaults.
struct SamplerOptions {
  uint32_t seed = 0xFFFFFFFF;  ///< 0xFFFFFFFF: random
  float temperature = 0.8f;    ///< <= 0: greedy
  int top_k = 40;              ///< <= 0: off
  float top_p = 0.95f;         ///< 1: off
  float min_p = 0.05f;         ///< 0: off
  float repeat_penalty = 1.0f; ///< 1: off
  int repeat_last_n = 64;
  std::string grammar;         ///< GBNF text, "" for none
};

class Sampler {
 public:
  /// Throws Error for options out of range and for a grammar that does not parse.
  Sampler(const Tokenizer& tokenizer, const SamplerOptions& options);

  /// Chooses a token from logits [vocab] and remembers it for penalties and grammar.
  Token sample(std::span<const float> logits);
  /// Remembers a token that was not sampled (of the prompt), for penalties.
  void accept(Token token);
  void reset();

 private:
  std::shared_ptr<llama_sampler> chain_, grammar_;
  std::vector<char> candidates_;
};

}  // namespace tidal
