// How well plans predict a text, and how far they are from full attention.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace tidal {

/// Of one plan over the steps of one stretch of text.
struct TextScore {
  double nll = 0;       ///< mean negative log likelihood of the next token, nats; exp of it: perplexity
  double kl = 0;        ///< mean KL(full attention || plan), nats
  double kl_error = 0;  ///< its standard error, steps taken as independent
  double same = 0;      ///< share of steps whose most likely token is full attention's
  double bytes = 0;     ///< read per step, on average (at most, where top-p decides)
  std::vector<double>
      kl_parts;  ///< mean KL over kTextScoreParts equal parts of the steps, or as many as there are steps
};

constexpr int kTextScoreParts = 8;

/// What plans are held against in place of their own engine's full attention: that of another engine, whose cache is of
/// another type.
struct TextReference {
  Engine* engine = nullptr;
  const Sequence* prefix = nullptr;  ///< the same tokens
};

/// Feeds all of `tokens` but the last one a step behind `prefix`, teacher-forced, and scores what full attention and
/// every plan predict for the next: [1 + plans], full attention first. At least two tokens. `step()` is called for
/// every step of every plan; what it throws ends the run. With a `reference` KL and `same` are from its full attention,
/// those of the engine's own full attention included. Throws Error as teacher_forced() does.
std::vector<TextScore> score_text(Engine& engine, const Sequence& prefix, std::span<const Token> tokens,
                                  std::span<const Plan> plans, const std::function<void()>& step = {},
                                  const TextReference& reference = {});

}  // namespace tidal
