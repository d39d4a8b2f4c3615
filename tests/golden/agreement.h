// How alike two engines' logits over the same tokens are.
#pragma once

#include <span>

#include "backend/hyperparameters.h"

namespace tidal::golden {

struct Agreement {
  double argmax_share = 0;      ///< positions with the same most likely token
  double perplexity_ratio = 0;  ///< ours over theirs
  double deviation = 0;         ///< root mean square difference of the logits
};

/// Of logits [tokens, vocab], and of all tokens but the first their perplexity; printed behind `what`.
Agreement compare(const char* what, std::span<const Token> tokens, std::span<const float> ours,
                  std::span<const float> theirs);

}  // namespace tidal::golden
