// Gemma 3 270M, whose windows of 512 positions all bite: its logits, text and perplexity behind 512 tokens of the KJV
// are llama.cpp's. What is held against what, and how near it has to be, as in logits_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <optional>

#include "engine/engine.h"
#include "golden/agreement.h"
#include "golden/float_copy.h"
#include "golden/llama_reference.h"
#include "golden/long_text.h"
#include "model/model.h"

namespace tidal::golden {
namespace {

constexpr int kThreads = 2;
constexpr size_t kPrefix = 512, kTokens = 512;
constexpr size_t kSteps = 64;  // decoded one by one, the last ones
constexpr int kGreedy = 24;

std::vector<float> copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

class Gemma : public testing::Test {
 protected:
  void SetUp() override {
    path_ = models_folder() + "/gemma3-270m.gguf";
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is missing; run tools/get_model.sh gemma3-270m";
    const std::string text = kjv_text();
    if (text.empty()) GTEST_SKIP() << "the KJV is missing; run tools/kjv.sh";
    llama_.emplace(path_, kPrefix + kTokens + kGreedy, kThreads);
    // The middle of the text: its beginning is known by heart.
    tokens_ = llama_->tokens(text.substr(text.size() / 2, 8 * (kPrefix + kTokens)));
    ASSERT_GE(tokens_.size(), kPrefix + kTokens);
    tokens_.resize(kPrefix + kTokens);
    backend_ = make_backend("cpu", kThreads);
    model_ = load_model(path_, *backend_);
    engine_.emplace(*backend_, model_, Plan::full(model_.hp.layers),
                    EngineOptions{.context = kPrefix + kTokens + kGreedy, .tokens = 4096});
  }
  void TearDown() override {
    if (!exact_path_.empty()) std::filesystem::remove(exact_path_);
  }

  /// Logits of a float16 copy of the file from token kPrefix on.
  std::vector<float> exact(std::span<const Token> tokens) {
    exact_path_ = testing::TempDir() + "tidal_float_copy_gemma.gguf";
    write_float_copy(path_, exact_path_);
    return LlamaReference(exact_path_, kPrefix + kTokens + kGreedy, kThreads).logits(tokens, kPrefix);
  }

  std::string path_, exact_path_;
  std::optional<LlamaReference> llama_;
  std::vector<Token> tokens_;
  std::unique_ptr<Backend> backend_;
  Model model_;
  std::optional<Engine> engine_;
};

TEST_F(Gemma, IsLlamas) {
  ASSERT_EQ(model_.hp.layers_that_read_all(), (std::vector<int>{5, 11, 17}));
  ASSERT_EQ(model_.hp.window(0), 512);
  const std::span<const Token> tokens(tokens_), judged = tokens.subspan(kPrefix);
  const std::vector<float> theirs = llama_->logits(tokens, kPrefix), exact = this->exact(tokens);
  Sequence sequence = engine_->create();
  engine_->prefill(sequence, tokens.first(kPrefix));
  Sequence steps = sequence.fork();
  const Engine::Request request{.sequence = &sequence, .tokens = judged, .all_logits = true};
  const std::vector<float> prefill = copy(engine_->step({&request, 1}));
  engine_->prefill(steps, judged.first(kTokens - kSteps));
  std::vector<float> decode;
  for (const Token token : judged.last(kSteps)) {
    const auto one = engine_->decode(steps, token);
    decode.insert(decode.end(), one.begin(), one.end());
  }

  std::printf("Gemma 3 270M, %zu tokens of the KJV behind %zu; llama.cpp with %s, %d threads:\n", kTokens, kPrefix,
              kReferenceSettings, kThreads);
  const auto last = [&](const std::vector<float>& logits) { return std::span(logits).last(decode.size()); };
  const std::span<const Token> stepped = judged.last(kSteps);
  const Agreement own = compare("llama.cpp against llama.cpp on float16", judged, theirs, exact);
  const Agreement exact_prefill = compare("tidal's prefill against llama.cpp on float16", judged, prefill, exact);
  const Agreement prefill_theirs = compare("tidal's prefill against llama.cpp", judged, prefill, theirs);
  const Agreement own_last = compare("llama.cpp on float16, the last ones", stepped, last(theirs), last(exact));
  const Agreement exact_decode = compare("tidal's decode, the last ones", stepped, decode, last(exact));
  EXPECT_GE(exact_prefill.argmax_share, 0.98);
  EXPECT_NEAR(exact_prefill.perplexity_ratio, 1.0, 0.005);
  EXPECT_LT(prefill_theirs.deviation, own.deviation * std::sqrt(2.0));
  EXPECT_LT(exact_decode.deviation, own_last.deviation * std::sqrt(2.0));
}

TEST_F(Gemma, GreedyTextPartsOnlyWhereRoundingDecides) {
  Sequence sequence = engine_->create();
  std::vector<Token> text = tokens_;
  auto logits = engine_->prefill(sequence, tokens_);
  for (int i = 0; i < kGreedy; ++i) {
    text.push_back(argmax(logits));
    logits = engine_->decode(sequence, text.back());
  }
  std::vector<Token> expected = tokens_;
  for (const Token token : llama_->greedy(tokens_, kGreedy)) expected.push_back(token);
  const auto [ours, theirs] = std::mismatch(text.begin(), text.end(), expected.begin());
  if (ours == text.end()) return;
  const auto at = static_cast<size_t>(ours - text.begin());
  const std::span<const Token> common = std::span(text).first(at);
  const std::vector<float> all = exact(common);
  const double rounding = deviation(llama_->logits(common, kPrefix), all);
  const auto last = std::span(all).last(static_cast<size_t>(model_.hp.vocab));
  const double margin = std::abs(last[static_cast<size_t>(*ours)] - last[static_cast<size_t>(*theirs)]);
  std::printf("  parted at token %zu, %.3f apart, rounding %.3f\n", at - tokens_.size(), margin, rounding);
  EXPECT_LT(margin, 4 * std::sqrt(2.0) * rounding);
}

TEST_F(Gemma, KeepingWindowsOnlyChangesNoBit) {
  ASSERT_TRUE(engine_->pool().windows()) << "the layers keep the whole context, so this tests nothing";
  EngineOptions options = engine_->options();
  options.whole_windows = true;
  Engine whole(*backend_, model_, engine_->plan(), options);
  EXPECT_LT(engine_->pool().bytes(), whole.pool().bytes());
  const Plan sparse = Plan::sketch(model_.hp, 1, sketch_policy(256));
  const auto texts = [&](Engine& engine) {
    Sequence sequence = engine.create();
    std::vector<float> all = copy(engine.prefill(sequence, tokens_));
    std::vector<Token> text;
    // By full attention; once more behind half of the tokens, whose windows are gone; by a sparse plan.
    for (const size_t length : {tokens_.size(), size_t{700}, size_t{701}}) {
      sequence.truncate(static_cast<int>(length));
      engine.set_plan(length == 701 ? sparse : Plan::full(model_.hp.layers));
      Token token = tokens_[length / 2];
      for (int i = 0; i < kGreedy; ++i) {
        const auto logits = engine.decode(sequence, token);
        token = argmax(logits);
        text.push_back(token);
        all.insert(all.end(), logits.begin(), logits.end());
      }
    }
    return std::pair(text, all);
  };
  const auto [ours, logits] = texts(*engine_);
  const auto [theirs, expected] = texts(whole);
  EXPECT_EQ(ours, theirs);
  EXPECT_TRUE(logits == expected);
}

}  // namespace
}  // namespace tidal::golden
