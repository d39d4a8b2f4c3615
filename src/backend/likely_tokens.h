// The most likely tokens of a row of logits: all that most ways of sampling need.
#pragma once

#include <span>

#include "backend/hyperparameters.h"

namespace tidal {

struct LikelyToken {
  Token token = 0;
  float logit = 0;

  bool operator==(const LikelyToken&) const = default;
};

/// Most of them that a backend is asked for in a row.
inline constexpr int kMostLikely = 1024;

/// The most likely of `logits` [vocab] in their order: by falling logit, ties to the lower token. NaN is before
/// everything, so that whoever samples sees it. `to` has 1 to vocab elements.
void select_likely(std::span<const float> logits, std::span<LikelyToken> to);

}  // namespace tidal
