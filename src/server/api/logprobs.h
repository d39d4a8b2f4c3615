// What answers say of their tokens' probabilities.
#pragma once

#include <vector>

#include "server/answer_chooser.h"
#include "server/json.h"
#include "text/tokenizer.h"

namespace tidal::server {

/// [{token, logprob, bytes, top_logprobs: [the same without the last]}], with the tokens' numbers as `id` where asked.
Json logprobs_list(const std::vector<TokenLogprob>& logprobs, const Tokenizer& tokenizer, bool ids);

}  // namespace tidal::server
