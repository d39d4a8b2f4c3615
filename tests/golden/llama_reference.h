// llama.cpp as the judge of our logits.
#pragma once

#include <llama.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/hyperparameters.h"

namespace tidal::golden {

/// What the settings of every reference are, for the messages of tests: its text depends on them.
constexpr const char* kReferenceSettings = "flash attention on, n_ubatch 512, KV cache f32, swa_full off";

/// One model in libllama with kReferenceSettings: an f32 KV cache, so that what differs is ours.
class LlamaReference {
 public:
  LlamaReference(const std::string& path, int context, int threads);

  std::vector<Token> tokens(const std::string& text) const;
  int vocab() const;
  /// Logits [tokens, vocab], teacher-forced from an empty cache; of the tokens from `from` on.
  std::vector<float> logits(std::span<const Token> tokens, size_t from = 0);
  /// The tokens that follow greedily.
  std::vector<Token> greedy(std::span<const Token> prompt, int count);

 private:
  std::shared_ptr<llama_model> model_;
  std::shared_ptr<llama_context> context_;
};

/// Where tools/setup.sh puts the models; TIDAL_MODELS overrides.
std::string models_folder();
/// The whole KJV; "" when it is not there.
std::string kjv_text();

/// Root mean square difference of two runs' logits, which must be as many.
double deviation(std::span<const float> a, std::span<const float> b);

}  // namespace tidal::golden
