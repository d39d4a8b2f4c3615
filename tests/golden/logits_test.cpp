// Our logits against llama.cpp's on the same tokens of real text.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/engine.h"
#include "golden/llama_reference.h"
#include "model/model.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;

Token argmax(std::span<const float> logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// -log p(token).
double surprise(std::span<const float> logits, Token token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return std::log(sum) + top - logits[token];
}

class Logits : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = models_folder() + "/" + GetParam() + ".gguf";
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is missing; run tools/setup.sh " << GetParam();
    if (kjv_text().empty()) GTEST_SKIP() << "the KJV is missing; run tools/kjv.sh";
  }

  std::string path_;
};

struct Agreement {
  double argmax_share;
  double perplexity, expected_perplexity;
};

Agreement compare(std::span<const Token> tokens, std::span<const float> ours, std::span<const float> theirs,
                  int vocab) {
  size_t same = 0;
  double our_sum = 0, their_sum = 0;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto a = ours.subspan(i * vocab, vocab), b = theirs.subspan(i * vocab, vocab);
    same += argmax(a) == argmax(b);
    our_sum += surprise(a, tokens[i + 1]);
    their_sum += surprise(b, tokens[i + 1]);
  }
  const auto count = static_cast<double>(tokens.size() - 1);
  return {static_cast<double>(same) / count, std::exp(our_sum / count), std::exp(their_sum / count)};
}

TEST_P(Logits, TeacherForcedAgreesWithLlama) {
  constexpr int kTokens = 512;
  LlamaReference llama(path_, kTokens, kThreads);
  std::vector<Token> tokens = llama.tokens(kjv_text().substr(0, 8000));
  ASSERT_GE(tokens.size(), kTokens);
  tokens.resize(kTokens);
  const std::vector<float> expected = llama.logits(tokens);

  const auto backend = make_backend("cpu", kThreads);
  const Model model = load_model(path_, *backend);
  ASSERT_EQ(model.hp.vocab, llama.vocab());
  Engine engine(*backend, model, Plan::full(model.hp.layers), {.context = kTokens});

  // As one prefill chunk (bf16 products), and one token a step (quantised dots).
  Sequence prefilled = engine.create();
  const Engine::Request request{.sequence = &prefilled, .tokens = tokens, .all_logits = true};
  const auto chunk = engine.step({&request, 1});
  const Agreement prefill = compare(tokens, chunk, expected, model.hp.vocab);
  prefilled = engine.create();
  std::vector<float> logits;
  for (const Token token : tokens) {
    const auto one = engine.decode(prefilled, token);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  const Agreement decode = compare(tokens, logits, expected, model.hp.vocab);
  for (const auto& [name, result] : {std::pair{"prefill", prefill}, std::pair{"decode", decode}}) {
    std::printf("%s %s: argmax equal %.2f %%, perplexity %.4f, llama.cpp %.4f (%+.3f %%)\n", GetParam(), name,
                100 * result.argmax_share, result.perplexity, result.expected_perplexity,
                100 * (result.perplexity / result.expected_perplexity - 1));
    EXPECT_GE(result.argmax_share, 0.98) << name;
    EXPECT_NEAR(result.perplexity / result.expected_perplexity, 1.0, 0.005) << name;
  }
}

TEST_P(Logits, GreedyTextIsLlamas) {
  constexpr int kCount = 24;
  LlamaReference llama(path_, 256, kThreads);
  const auto backend = make_backend("cpu", kThreads);
  const Model model = load_model(path_, *backend);
  Engine engine(*backend, model, Plan::full(model.hp.layers), {.context = 256});
  for (const char* prompt : {"The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was"}) {
    const std::vector<Token> tokens = llama.tokens(prompt);
    Sequence sequence = engine.create();
    std::vector<Token> text;
    auto logits = engine.prefill(sequence, tokens);
    while (static_cast<int>(text.size()) < kCount) {
      text.push_back(argmax(logits));
      logits = engine.decode(sequence, text.back());
    }
    EXPECT_EQ(text, llama.greedy(tokens, kCount)) << prompt;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Logits, testing::Values("smollm2-135m", "qwen2.5-coder-0.5b"), [](const auto& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace tidal::golden
