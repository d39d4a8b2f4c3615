#include "backend/likely_tokens.h"

#include <algorithm>
#include <cmath>

namespace tidal {
namespace {

/// The order of likely_tokens.h.
bool before(const LikelyToken& a, const LikelyToken& b) {
  const bool a_nan = std::isnan(a.logit), b_nan = std::isnan(b.logit);
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.logit != b.logit) return a.logit > b.logit;
  return a.token < b.token;
}

}  // namespace

void select_likely(std::span<const float> logits, std::span<LikelyToken> to) {
  // A heap whose top is the least likely so far: hardly any logit gets past it.
  for (size_t i = 0; i < to.size(); ++i) to[i] = {static_cast<Token>(i), logits[i]};
  std::make_heap(to.begin(), to.end(), before);
  for (size_t i = to.size(); i < logits.size(); ++i) {
    // Tokens come in ascending order: an equal one is behind.
    if (logits[i] <= to.front().logit) continue;
    const LikelyToken next{static_cast<Token>(i), logits[i]};
    if (!before(next, to.front())) continue;
    std::pop_heap(to.begin(), to.end(), before);
    to.back() = next;
    std::push_heap(to.begin(), to.end(), before);
  }
  std::sort_heap(to.begin(), to.end(), before);
}

}  // namespace tidal
