#include "server/answer_chooser.h"

#include <algorithm>
#include <cmath>

namespace tidal::server {

void AnswerChooser::note(std::span<const float> logits, Token token) {
  // Of the model itself, before temperature and penalties, as OpenAI's and llama.cpp's are.
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  const double shift = top + std::log(sum);
  TokenLogprob noted{token, static_cast<float>(logits[static_cast<size_t>(token)] - shift), {}};
  std::vector<LikelyToken> likely(std::min(static_cast<size_t>(top_logprobs_), logits.size()));
  if (!likely.empty()) select_likely(logits, likely);
  for (const LikelyToken& one : likely) noted.top.emplace_back(one.token, static_cast<float>(one.logit - shift));
  noted_.push_back(std::move(noted));
}

}  // namespace tidal::server
