// What the APIs' requests have in common: sampling, limits, plans.
#pragma once

#include <vector>

#include "server/json.h"
#include "server/service.h"

namespace tidal::server {

/// A generation without its prompt, by the fields of OpenAI's, llama-server's and our own names: temperature, top_p,
/// top_k, min_p, seed, repeat_penalty, repeat_last_n, frequency_penalty, presence_penalty, logit_bias, stop,
/// max_tokens, max_completion_tokens, n_predict, ignore_eos, grammar, json_schema, cache_prompt, tidal. Throws ApiError
/// for impossible values.
Generation generation_from(const Fields& fields, const Service& service);

/// Most answers to one request.
inline constexpr int kMostChoices = 64;

/// The texts of a field that may be one or a list of at most `most`.
std::vector<std::string> strings_of(const Fields& fields, const std::string& name, size_t most);

/// {prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details}: of all answers to one prompt.
Json usage(const std::vector<Ending>& endings);
/// As llama-server has them, for one answer, and the bytes that decoding read.
Json timings(const Ending& ending);
/// "stop" or "length".
const char* finish_reason(const Ending& ending);
/// The body of Retry-After, in seconds.
inline constexpr const char* kRetryAfter = "1";
/// A new identifier with this prefix.
std::string new_id(const char* prefix);
/// Seconds since 1970.
int64_t now();

}  // namespace tidal::server
