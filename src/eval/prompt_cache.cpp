#include "eval/prompt_cache.h"

#include <algorithm>

namespace tidal {

int PromptCache::shared(std::span<const Token> prompt) const {
  const std::span<const Token> known = last_.tokens();
  const auto end = std::mismatch(prompt.begin(), prompt.end(), known.begin(), known.end()).first;
  const auto common = static_cast<int>(end - prompt.begin());
  if (common == last_.length() && common == static_cast<int>(prompt.size())) return common;
  return common - common % engine_.chunk();
}

int PromptCache::missing(std::span<const Token> prompt) const {
  return static_cast<int>(prompt.size()) - shared(prompt);
}

const Sequence& PromptCache::prefill(std::span<const Token> prompt, const std::function<void(int)>& progress) {
  const int kept = shared(prompt);
  last_.truncate(kept);
  if (kept == static_cast<int>(prompt.size()) && kept > 0) return last_;
  int before = 0;
  engine_.prefill(last_, prompt.subspan(kept), [&](int done) {
    if (progress) progress(done - before);
    before = done;
    return true;
  });
  return last_;
}

}  // namespace tidal
