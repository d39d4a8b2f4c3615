#include "engine/repetition.h"

#include <algorithm>

namespace tidal {

Repetition find_repetition(std::span<const Token> tokens, Token last, int least) {
  constexpr int kMost = 16;
  const int length = static_cast<int>(tokens.size());
  Repetition best;
  for (int at = length - 1; at >= 0 && best.matched < kMost; --at) {
    if (tokens[at] != last) continue;
    int matched = 1;
    while (matched < kMost && matched <= at && tokens[at - matched] == tokens[length - matched]) ++matched;
    if (matched < least || matched <= best.matched) continue;
    best = {matched, at + 1};
  }
  return best;
}

void copy_repetition(std::span<const Token> tokens, Token last, const Repetition& repetition, int count,
                     std::vector<Token>& drafts) {
  const int length = static_cast<int>(tokens.size());
  for (int from = repetition.behind; from < repetition.behind + count; ++from) {
    drafts.push_back(from < length ? tokens[from] : from == length ? last : drafts[from - length - 1]);
  }
}

}  // namespace tidal
