// Exact mode held against full attention: the same text, and what it took.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/exact.h"

namespace tidal {

/// A greedy text by full attention, one token a step.
struct FullText {
  std::vector<Token> tokens;
  std::vector<float> gaps;  ///< [tokens] between the best and the second best logit
  double seconds = 0;
};

/// Continues `prompt` (clean, stays as it is) and `token` behind it by `count` tokens. `step(tokens)` after every step;
/// what it throws ends the run.
FullText full_text(Engine& engine, const Sequence& prompt, Token token, int count,
                   const std::function<void(int tokens)>& step);

/// The same by exact mode.
struct ExactText {
  std::vector<Token> tokens;
  ExactStatistics statistics;
  double seconds = 0;
};

ExactText exact_text(Engine& engine, const Sequence& prompt, Token token, int count, const Plan& plan,
                     const ExactOptions& options, const std::function<void(int tokens)>& step);

}  // namespace tidal
