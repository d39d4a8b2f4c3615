// The engine's logits of a text that small random models can read.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace tidal::golden {

inline constexpr int kTokens = 120;
/// So many, from 0 to 31.
std::vector<Token> some_tokens();

/// [tokens, vocab], by full attention. `chunk`: tokens of a pass; 1: decoded one by one.
std::vector<float> logits_of(const Model& model, Backend& backend, std::span<const Token> tokens, size_t chunk);
/// Of the model in a file, on the backend of this name.
std::vector<float> our_logits(const std::string& path, std::span<const Token> tokens, const char* name = "reference",
                              size_t chunk = kTokens);

}  // namespace tidal::golden
