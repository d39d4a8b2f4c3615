// Our logits against llama.cpp's on the same tokens of real text.
//
// llama.cpp rounds activations to 8 bits before it multiplies them with quantised weights, and so does our decode step:
// on SmolLM2 that alone changes the most likely token at 2-3 % of the positions, even between two runs of llama.cpp
// with other batch sizes. What the weights really say is therefore taken from llama.cpp on a float16 copy of the file.
// Prefill, which keeps bf16 activations, has to agree with that; decode has to be as near to it as llama.cpp itself is.
// On a GPU weights and activations are bf16 in both, so decode has to agree as prefill does.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/engine.h"
#include "golden/agreement.h"
#include "golden/float_copy.h"
#include "golden/llama_reference.h"
#include "golden/long_text.h"
#include "model/model.h"
#include "support/backends.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr int kTokens = 512;

/// By backend and model.
class Logits : public test::BackendTest<std::tuple<std::string, const char*>> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    path_ = models_folder() + "/" + model_name() + ".gguf";
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is missing; run tools/setup.sh " << model_name();
    if (kjv_text().empty()) GTEST_SKIP() << "the KJV is missing; run tools/kjv.sh";
    exact_path_ = testing::TempDir() + "tidal_float_copy_" + backend_name() + "_" + model_name() + ".gguf";
    write_float_copy(path_, exact_path_);
  }
  void TearDown() override {
    if (!exact_path_.empty()) std::filesystem::remove(exact_path_);
  }

  static const std::string& backend_name() { return std::get<0>(GetParam()); }
  static const char* model_name() { return std::get<1>(GetParam()); }

  std::string path_, exact_path_;
};

TEST_P(Logits, TeacherForcedAgreesWithLlama) {
  LlamaReference llama(path_, kTokens, kThreads);
  std::vector<Token> tokens = llama.tokens(kjv_text().substr(0, 8000));
  ASSERT_GE(tokens.size(), kTokens);
  tokens.resize(kTokens);
  const std::vector<float> theirs = llama.logits(tokens);
  const std::vector<float> exact = LlamaReference(exact_path_, kTokens, kThreads).logits(tokens);

  const auto backend = make_backend(backend_name(), kThreads);
  const Model model = load_model(path_, *backend);
  ASSERT_EQ(model.hp.vocab, llama.vocab());
  Engine engine(*backend, model, Plan::full(model.hp.layers), {.context = kTokens});
  Sequence sequence = engine.create();
  const Engine::Request request{.sequence = &sequence, .tokens = tokens, .all_logits = true};
  const auto chunk = engine.step({&request, 1});
  const std::vector<float> prefill(chunk.begin(), chunk.end());
  sequence = engine.create();
  std::vector<float> decode;
  for (const Token token : tokens) {
    const auto one = engine.decode(sequence, token);
    decode.insert(decode.end(), one.begin(), one.end());
  }

  std::printf("%s on %s, %d tokens of the KJV, teacher-forced; llama.cpp with %s, %d threads:\n", model_name(),
              backend_name().c_str(), kTokens, kReferenceSettings, kThreads);
  const Agreement own = compare("llama.cpp against llama.cpp on float16", tokens, theirs, exact);
  const Agreement exact_prefill = compare("tidal's prefill against llama.cpp on float16", tokens, prefill, exact);
  const Agreement exact_decode = compare("tidal's decode against llama.cpp on float16", tokens, decode, exact);
  const Agreement prefill_theirs = compare("tidal's prefill against llama.cpp", tokens, prefill, theirs);
  const Agreement decode_theirs = compare("tidal's decode against llama.cpp", tokens, decode, theirs);

  EXPECT_GE(exact_prefill.argmax_share, 0.98);
  EXPECT_NEAR(exact_prefill.perplexity_ratio, 1.0, 0.005);
  if (backend_name() == "cuda") {
    EXPECT_GE(exact_decode.argmax_share, 0.98);
    EXPECT_NEAR(exact_decode.perplexity_ratio, 1.0, 0.005);
  }
  // Two independent roundings of the same size differ by sqrt(2) of one of them.
  EXPECT_LT(exact_decode.deviation, own.deviation * std::sqrt(2.0));
  EXPECT_LT(prefill_theirs.deviation, own.deviation * std::sqrt(2.0));
  EXPECT_LT(decode_theirs.deviation, own.deviation * 2.0);
  // At positions where rounding decides, each engine goes its own way: twice llama.cpp's own share, plus three standard
  // deviations of such a count.
  const double changed = 1 - own.argmax_share;
  const double slack = 3 * std::sqrt(2 * std::max(changed, 0.01) / kTokens);
  EXPECT_GE(decode_theirs.argmax_share, 1 - 2 * changed - slack);
  EXPECT_GE(exact_decode.argmax_share, 1 - changed - slack);
  EXPECT_NEAR(exact_decode.perplexity_ratio, 1.0, std::max(0.005, 2 * std::abs(own.perplexity_ratio - 1)));
}

// Texts are printed, not judged: llama.cpp's own parts from itself by its settings
// (findings/llama_text_follows_flash_attention.sh). Judged is every place where they part.
TEST_P(Logits, GreedyTextPartsOnlyWhereRoundingDecides) {
  constexpr int kCount = 24;
  LlamaReference llama(path_, 256, kThreads);
  LlamaReference exact(exact_path_, 256, kThreads);
  const auto backend = make_backend(backend_name(), kThreads);
  const Model model = load_model(path_, *backend);
  Engine engine(*backend, model, Plan::full(model.hp.layers), {.context = 256});
  int equal = 0, prompts = 0;
  for (const char* prompt : {"The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was",
                             "1, 2, 3, 4, 5, 6,", "In the beginning God created", "The three primary colours are"}) {
    const std::vector<Token> tokens = llama.tokens(prompt);
    Sequence sequence = engine.create();
    std::vector<Token> text = tokens;
    auto logits = engine.prefill(sequence, tokens);
    for (int i = 0; i < kCount; ++i) {
      text.push_back(argmax(logits));
      logits = engine.decode(sequence, text.back());
    }
    std::vector<Token> expected = tokens;
    for (const Token token : llama.greedy(tokens, kCount)) expected.push_back(token);
    ++prompts;
    const auto [ours, theirs] = std::mismatch(text.begin(), text.end(), expected.begin());
    if (ours == text.end()) {
      ++equal;
      continue;
    }
    // They may part only where rounding decides: where the float16 copy's logits of the two tokens are closer than the
    // difference of two roundings, four standard deviations of it. A rounding's is that of llama.cpp's own logits on
    // this very text, whose activations have 8 bits.
    const auto at = static_cast<size_t>(ours - text.begin());
    const std::vector<float> all = exact.logits(std::span(text).first(at));
    const double rounding = deviation(llama.logits(std::span(text).first(at)), all);
    const auto last = std::span(all).last(static_cast<size_t>(model.hp.vocab));
    const double margin = std::abs(last[*ours] - last[*theirs]);
    std::printf("  parted at token %zu, %.3f apart, rounding %.3f: %s\n", at, margin, rounding, prompt);
    EXPECT_LT(margin, 4 * std::sqrt(2.0) * rounding) << prompt << ", token " << at;
  }
  std::printf("%s on %s: greedy text equal to llama.cpp's (%s, %d threads) on %d of %d prompts, %d tokens each\n",
              model_name(), backend_name().c_str(), kReferenceSettings, kThreads, equal, prompts, kCount);
}

INSTANTIATE_TEST_SUITE_P(Models, Logits,
                         testing::Combine(testing::Values("cpu", "cuda"),
                                          testing::Values("smollm2-135m", "qwen2.5-coder-0.5b")),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param) + "_" + std::get<1>(info.param);
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

}  // namespace
}  // namespace tidal::golden
