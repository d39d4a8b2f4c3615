#include "server/answer_chooser.h"

#include <algorithm>

#include "eval/next_token.h"

namespace tidal::server {

void AnswerChooser::note(std::span<const float> logits, Token token) {
  // Of the model itself, before temperature and penalties, as OpenAI's and llama.cpp's are.
  const double shift = log_sum_exp(logits);
  TokenLogprob noted{token, static_cast<float>(logits[static_cast<size_t>(token)] - shift), {}};
  std::vector<LikelyToken> likely(std::min(static_cast<size_t>(top_logprobs_), logits.size()));
  if (!likely.empty()) select_likely(logits, likely);
  for (const LikelyToken& one : likely) noted.top.emplace_back(one.token, static_cast<float>(one.logit - shift));
  noted_.push_back(std::move(noted));
}

}  // namespace tidal::server
