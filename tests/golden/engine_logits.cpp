#include "golden/engine_logits.h"

#include <algorithm>

#include "engine/engine.h"

namespace tidal::golden {

std::vector<Token> some_tokens() {
  std::vector<Token> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back((i * i + 3 * i) % 32);
  return tokens;
}

std::vector<float> logits_of(const Model& model, Backend& backend, std::span<const Token> tokens, size_t chunk) {
  Engine engine(backend, model, Plan::full(model.hp.layers), {.context = 128});
  Sequence sequence = engine.create();
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); i += chunk) {
    const Engine::Request request{.sequence = &sequence,
                                  .tokens = tokens.subspan(i, std::min(chunk, tokens.size() - i)),
                                  .decode = chunk == 1,
                                  .all_logits = chunk > 1};
    const auto logits = engine.step({&request, 1});
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

std::vector<float> our_logits(const std::string& path, std::span<const Token> tokens, const char* name, size_t chunk) {
  const auto backend = make_backend(name, 2);
  return logits_of(load_model(path, *backend), *backend, tokens, chunk);
}

}  // namespace tidal::golden
