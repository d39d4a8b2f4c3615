// Small random models of every architecture, as the tests of their files share them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "golden/engine_logits.h"
#include "golden/llama_reference.h"
#include "support/gguf_writer.h"
#include "support/loading.h"

namespace tidal::golden {

/// An architecture, and how many experts its layers have. Of SmolLM3 the fourth layer is the first not to rotate.
struct Kind {
  const char* architecture;
  uint64_t experts = 0;
  uint64_t layers = 2;

  bool is_mixture() const { return experts > 0; }
  test::GgufWriter model() const {
    test::SmallShape shape{.layers = layers, .experts = experts};
    if (std::string(architecture) == "olmoe") shape.kv_heads = shape.heads;  // as libllama expects
    return test::small_model(architecture, shape);
  }
  std::string name() const {
    std::string name = architecture + std::string(experts > 0 ? "_experts" : "");
    std::replace(name.begin(), name.end(), '-', '_');  // as googletest asks
    return name;
  }
};

class Architectures : public testing::TestWithParam<Kind> {
 protected:
  /// Of logits of this size: a few times bf16's half unit, 2^-9, for two layers, whose roundings are independent.
  static double most_rounding(double size) {
    return size / 128 * std::sqrt(static_cast<double>(GetParam().layers) / 2);
  }
  /// How far two runs' logits are apart, over all tokens. Of mixtures of experts what three quarters of the tokens are
  /// at least: one that its router finds two experts about as good for goes through the other when K and V are rounded,
  /// which moves its logits by a whole expert, and a little those of all tokens behind it.
  static double apart(std::span<const float> a, std::span<const float> b) {
    if (!GetParam().is_mixture()) return deviation(a, b);
    std::vector<double> tokens;
    const size_t vocab = a.size() / kTokens;
    for (size_t i = 0; i < a.size(); i += vocab) tokens.push_back(deviation(a.subspan(i, vocab), b.subspan(i, vocab)));
    std::nth_element(tokens.begin(), tokens.begin() + kTokens / 4, tokens.end());
    return tokens[kTokens / 4];
  }
};

inline const std::vector<Kind> kKinds = {
    Kind{"llama"},        Kind{"qwen2"},         Kind{"qwen3"},    Kind{"llama", 4},      Kind{"qwen2moe", 5},
    Kind{"qwen3moe", 8},  Kind{"olmoe", 6},      Kind{"olmo2"},    Kind{"smollm3", 0, 4}, Kind{"seed_oss"},
    Kind{"phi3"},         Kind{"glm4"},          Kind{"granite"},  Kind{"gemma2"},        Kind{"gemma3"},
    Kind{"gpt-oss", 5},   Kind{"granitemoe", 4}, Kind{"mistral3"}, Kind{"mistral3", 4},   Kind{"qwen35"},
    Kind{"qwen35moe", 8}, Kind{"qwen3next", 8}};

}  // namespace tidal::golden
