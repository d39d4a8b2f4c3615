// Text that repeats itself: what followed the last time.
#pragma once

#include <span>
#include <vector>

#include "backend/hyperparameters.h"

namespace tidal {

/// An earlier occurrence of the end of a text.
struct Repetition {
  int matched = 0;  ///< tokens at the end of the text that occurred before; 0: none
  int behind = 0;   ///< where in the text the earlier occurrence had ended: index of the token that came next
};

/// The longest such occurrence of at least `least` tokens, of equally long ones the latest; matches of more than 16
/// count as 16. The text is `tokens` and `last` behind them. O(tokens).
Repetition find_repetition(std::span<const Token> tokens, Token last, int least);

/// What a text that goes on as it did then says next: `count` tokens, appended to `drafts` (empty). A copy may run into
/// itself, so that a text in a loop stays in it. repetition.matched > 0.
void copy_repetition(std::span<const Token> tokens, Token last, const Repetition& repetition, int count,
                     std::vector<Token>& drafts);

}  // namespace tidal
