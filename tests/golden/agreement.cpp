#include "golden/agreement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "golden/long_text.h"

namespace tidal::golden {
namespace {

/// -log p(token).
double surprise(std::span<const float> logits, Token token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return std::log(sum) + top - logits[token];
}

}  // namespace

Agreement compare(const char* what, std::span<const Token> tokens, std::span<const float> ours,
                  std::span<const float> theirs) {
  const size_t count = tokens.size() - 1, vocab = ours.size() / tokens.size();
  double our_sum = 0, their_sum = 0, squares = 0;
  size_t same = 0;
  for (size_t i = 0; i < count; ++i) {
    const auto a = ours.subspan(i * vocab, vocab), b = theirs.subspan(i * vocab, vocab);
    same += argmax(a) == argmax(b);
    our_sum += surprise(a, tokens[i + 1]);
    their_sum += surprise(b, tokens[i + 1]);
    for (size_t j = 0; j < vocab; ++j) squares += (a[j] - b[j]) * (a[j] - b[j]);
  }
  const auto n = static_cast<double>(count);
  const Agreement result{same / n, std::exp((our_sum - their_sum) / n), std::sqrt(squares / n / vocab)};
  std::printf("  %-46s argmax equal %.2f %%, perplexity %.4f against %.4f (%+.3f %%), deviation %.3f\n", what,
              100 * result.argmax_share, std::exp(our_sum / n), std::exp(their_sum / n),
              100 * (result.perplexity_ratio - 1), result.deviation);
  return result;
}

}  // namespace tidal::golden
