// The texts that a completion goes on with.
#pragma once

#include <vector>

#include "server/json.h"
#include "text/tokenizer.h"

namespace tidal::server {

/// What one prompt may be made of: a string or tokens, or, as llama-server has it, both in turn, and objects with a
/// prompt_string.
enum class PromptParts { Alike, Mixed };

/// The field `prompt`: one prompt, or a list of up to 64. Throws ApiError for what is none and for tokens outside the
/// vocabulary.
std::vector<std::vector<Token>> prompts_from(const Fields& fields, const Tokenizer& tokenizer, PromptParts parts);

}  // namespace tidal::server
