// Tokenizer and sampler on the vocabularies of real models.
#include <gtest/gtest.h>
#include <llama.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "support/error.h"
#include "support/random.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace tidal {
namespace {

// gmock would only be needed for HasSubstr.
#define EXPECT_ERROR(expression, words) \
  EXPECT_NE(test::error_of([&] { expression; }).find(words), std::string::npos) << test::error_of([&] { expression; })

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Text : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    const std::string path = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/" + GetParam() + ".gguf";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is missing; run tools/get_model.sh " << GetParam();
    tokenizer_ = std::make_unique<Tokenizer>(path);
  }

  /// Logits 0 but for some tokens.
  std::vector<float> logits(std::initializer_list<std::pair<Token, float>> some) const {
    std::vector<float> all(static_cast<size_t>(tokenizer_->vocab_size()), 0.0f);
    for (const auto& [token, logit] : some) all[static_cast<size_t>(token)] = logit;
    return all;
  }
  Token token(const std::string& text) const {
    const auto tokens = tokenizer_->encode(text, false, true);
    EXPECT_EQ(tokens.size(), 1u) << text;
    return tokens.front();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(Text, DecodesWhatItEncoded) {
  for (const std::string text : {"In the beginning", " two  spaces\n\n\tand a tab ",
                                 "caf\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87 "
                                 "\xF0\x9F\x98\x80",
                                 "<|im_start|> as text", ""}) {
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(text, false, false)), text);
  }
}

TEST_P(Text, ControlTokensAreSilentUnlessAskedFor) {
  const Token start = token("<|im_start|>");
  EXPECT_EQ(tokenizer_->piece(start), "");
  EXPECT_EQ(tokenizer_->piece(start, true), "<|im_start|>");
  EXPECT_TRUE(tokenizer_->is_end(token("<|im_end|>")));
  EXPECT_FALSE(tokenizer_->is_end(token("a")));
}

TEST_P(Text, RefusesWhatIsNoTextAndNoToken) {
  EXPECT_ERROR(tokenizer_->encode("ab\xFF", false, false), "byte 2 (0xff) is not valid UTF-8");
  EXPECT_ERROR(tokenizer_->piece(-1), "token: -1 is outside the vocabulary");
  EXPECT_ERROR(tokenizer_->piece(tokenizer_->vocab_size()), "is outside the vocabulary");
}

TEST_P(Text, AppliesChatml) {
  const std::vector<ChatMessage> chat = {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Yes?"}};
  EXPECT_EQ(tokenizer_->apply_chat_template(std::span(chat).first(2), true),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_TRUE(tokenizer_->apply_chat_template(chat, false).ends_with("<|im_start|>assistant\nYes?<|im_end|>\n"));
  const std::vector<ChatMessage> longer = {{"user", std::string(100000, 'x')}};
  EXPECT_GT(tokenizer_->apply_chat_template(longer, true).size(), 100000u);
}

TEST_P(Text, ChatPromptHasBosOnceHoweverTheTemplateWritesIt) {
  const std::vector<ChatMessage> chat = {{"user", "Hi"}};
  const std::string path = testing::TempDir() + "/bos.jinja";
  for (const std::string text : {"{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"}) {
    std::ofstream(path) << text;
    tokenizer_->set_chat_template(path, "");
    const std::vector<Token> tokens = tokenizer_->encode(tokenizer_->apply_chat_template(chat, true), true, true);
    std::vector<Token> expected = tokenizer_->encode("Hi", true, true);  // with BOS where the vocabulary adds it
    const Token bos = llama_vocab_bos(tokenizer_->vocab());
    if (!llama_vocab_get_add_bos(tokenizer_->vocab()) && text.starts_with("{{ bos")) {
      expected.insert(expected.begin(), bos);  // these vocabularies: the template's own BOS stays
    }
    EXPECT_EQ(tokens, expected) << text;
  }
  tokenizer_->set_chat_template("chatml", "");
  EXPECT_EQ(tokenizer_->apply_chat_template(chat, true), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_ERROR(tokenizer_->set_chat_template("nothing", ""), "neither a file nor one of libllama's");
}

TEST_P(Text, GreedyTakesTheHighestLogit) {
  Sampler sampler(*tokenizer_, {.temperature = 0});
  EXPECT_EQ(sampler.sample(logits({{17, 1.0f}, {4242, 2.0f}})), 4242);
  EXPECT_EQ(sampler.sample(logits({{17, kInfinity}, {4242, 2.0f}})), 17);
  std::vector<float> none(static_cast<size_t>(tokenizer_->vocab_size()), -kInfinity);
  EXPECT_ERROR(sampler.sample(none), "no token can continue the text");
  none[5] = -1e30f;
  EXPECT_EQ(sampler.sample(none), 5);
}

TEST_P(Text, SamplesByProbabilityAndSeed) {
  const auto two = logits({{17, 30.0f}, {4242, 30.0f}});
  const auto draw = [&](uint32_t seed) {
    Sampler sampler(*tokenizer_, {.seed = seed, .temperature = 1.0f});
    std::vector<Token> tokens;
    for (int i = 0; i < 40; ++i) tokens.push_back(sampler.sample(two));
    return tokens;
  };
  const auto first = draw(1);
  EXPECT_EQ(std::set<Token>(first.begin(), first.end()), (std::set<Token>{17, 4242}));  // misses one in 2^39 seeds
  EXPECT_EQ(draw(1), first);
  EXPECT_NE(draw(2), first);
}

TEST_P(Text, TheMostLikelyTokensAreEnough) {
  const size_t vocab = static_cast<size_t>(tokenizer_->vocab_size());
  test::Random random(90);
  const Token end = token("<|im_end|>");
  const SamplerOptions options[] = {{.seed = 1},
                                    {.seed = 2, .temperature = 1.5f, .top_k = 300, .top_p = 1.0f, .min_p = 0.0f},
                                    {.seed = 3, .temperature = 1.0f, .ignore_end = true},
                                    {.temperature = 0},
                                    {.temperature = 0, .ignore_end = true}};
  for (const SamplerOptions& one : options) {
    Sampler all(*tokenizer_, one), some(*tokenizer_, one);
    ASSERT_GE(some.likely(), one.temperature <= 0 ? 1 : one.top_k);
    for (int step = 0; step < 30; ++step) {
      std::vector<float> logits(vocab);
      for (float& logit : logits) logit = random.normal(2.0f);
      if (step % 3 == 0) logits[static_cast<size_t>(end)] = 20.0f;
      std::vector<LikelyToken> likely(static_cast<size_t>(some.likely()));
      select_likely(logits, likely);
      ASSERT_EQ(some.sample(likely), all.sample(logits)) << "step " << step;
    }
  }
  Sampler greedy(*tokenizer_, {.temperature = 0});
  EXPECT_EQ(greedy.likely(), 1);
  EXPECT_ERROR(greedy.sample(std::vector<LikelyToken>{{7, std::nanf("")}}), "that of token 7 is not a number");
  EXPECT_ERROR(greedy.sample(std::vector<LikelyToken>{{7, -kInfinity}}), "no token can continue the text");
}

TEST_P(Text, WhatNeedsAllLogitsSaysSo) {
  const SamplerOptions options[] = {
      {.top_k = 0}, {.top_k = 2000}, {.repeat_penalty = 1.1f}, {.grammar = "root ::= \"x\""}};
  for (const SamplerOptions& one : options) EXPECT_EQ(Sampler(*tokenizer_, one).likely(), 0);
  EXPECT_GT(Sampler(*tokenizer_, {.repeat_penalty = 1.1f, .repeat_last_n = 0}).likely(), 0);
}

TEST_P(Text, PenaltiesCountTheTokensOfThePrompt) {
  Sampler sampler(*tokenizer_, {.temperature = 0, .repeat_penalty = 2.0f, .repeat_last_n = 2});
  const auto close = logits({{17, 1.5f}, {4242, 1.0f}});
  sampler.accept(std::vector<Token>{17});
  EXPECT_EQ(sampler.sample(close), 4242);               // 17 is halved
  EXPECT_EQ(sampler.sample(logits({{17, 1.5f}})), 17);  // still the highest
  sampler.accept(std::vector<Token>{1, 2});             // looks two tokens back
  EXPECT_EQ(sampler.sample(close), 17);
}

TEST_P(Text, GrammarRulesOutTokensAndStartsAnew) {
  Sampler sampler(*tokenizer_, {.temperature = 0, .grammar = "root ::= \"a\" \"b\""});
  const Token a = token("a"), b = token("b"), x = token("x"), end = token("<|im_end|>");
  for (int answer = 0; answer < 2; ++answer) {
    const auto wants_x = logits({{x, 9.0f}, {a, 2.0f}, {b, 3.0f}, {end, 1.0f}});
    EXPECT_EQ(sampler.sample(wants_x), a);
    EXPECT_EQ(sampler.sample(wants_x), b);
    EXPECT_TRUE(tokenizer_->is_end(sampler.sample(wants_x)));
    sampler.restart_grammar();
  }
}

TEST_P(Text, GrammarWaitsForItsTrigger) {
  const Token a = token("a"), b = token("b"), x = token("x"), mark = token("!");
  const auto wants = [&](Token first) { return logits({{first, 9.0f}, {a, 2.0f}, {b, 1.0f}}); };
  const SamplerOptions by_word{.temperature = 0, .grammar = "root ::= \"!\" \"b\" \"a\"", .grammar_patterns = {"!"}};
  const SamplerOptions by_token{.temperature = 0, .grammar = by_word.grammar, .grammar_tokens = {mark}};
  for (const SamplerOptions& options : {by_word, by_token}) {
    Sampler sampler(*tokenizer_, options);
    EXPECT_EQ(sampler.likely(), 0);
    for (int answer = 0; answer < 2; ++answer) {
      for (const Token free : {x, a, mark}) EXPECT_EQ(sampler.sample(wants(free)), free);
      Sampler copy = sampler.clone();
      for (Sampler* one : {&sampler, &copy}) {
        EXPECT_EQ(one->sample(wants(x)), b);
        EXPECT_EQ(one->sample(wants(x)), a);
      }
      sampler.restart_grammar();
    }
  }
}

TEST_P(Text, ATriggerInAThoughtIsNone) {
  const Token a = token("a"), x = token("x"), mark = token("!"), begin = token("{"), end = token("}");
  const auto wants = [&](Token first) { return logits({{first, 9.0f}, {a, 2.0f}}); };
  SamplerOptions options{.temperature = 0, .grammar = "root ::= \"!\" \"a\"", .grammar_patterns = {"!"}};
  options.thought_begin = "{";
  options.thought_end = "}";
  for (const bool inside : {false, true}) {
    options.in_thought = inside;
    Sampler sampler(*tokenizer_, options);
    for (int answer = 0; answer < 2; ++answer) {
      if (!inside) {
        EXPECT_EQ(sampler.sample(wants(begin)), begin);
      }
      for (const Token free : {mark, x, end, mark}) EXPECT_EQ(sampler.sample(wants(free)), free);
      EXPECT_EQ(sampler.sample(wants(x)), a);
      sampler.restart_grammar();
    }
  }
  options.in_thought = false;
  Sampler without(*tokenizer_, options);
  EXPECT_EQ(without.sample(wants(mark)), mark);
  EXPECT_EQ(without.sample(wants(x)), a);
}

TEST_P(Text, GrammarBeginsWithWhatThePromptHas) {
  const Token a = token("a"), b = token("b"), x = token("x");
  const SamplerOptions options{.temperature = 0, .grammar = "root ::= \"a\" \"b\" \"a\"", .grammar_prefix = {a}};
  Sampler sampler(*tokenizer_, options);
  for (int answer = 0; answer < 2; ++answer) {
    EXPECT_EQ(sampler.sample(logits({{x, 9.0f}, {a, 2.0f}})), b);
    EXPECT_EQ(sampler.sample(logits({{x, 9.0f}, {b, 2.0f}})), a);
    sampler.restart_grammar();
  }
  EXPECT_ERROR(Sampler(*tokenizer_, {.grammar = "root ::= \"b\"", .grammar_prefix = {a}}), "grammar: ");
}

TEST_P(Text, IgnoresTheEndOnRequest) {
  const Token a = token("a"), end = token("<|im_end|>");
  const auto wants_end = logits({{end, 9.0f}, {a, 2.0f}});
  EXPECT_EQ(Sampler(*tokenizer_, {.temperature = 0}).sample(wants_end), end);
  EXPECT_EQ(Sampler(*tokenizer_, {.temperature = 0, .ignore_end = true}).sample(wants_end), a);
}

TEST_P(Text, RefusesBadSamplerInput) {
  const auto make = [&](const SamplerOptions& options) { Sampler(*tokenizer_, options); };
  EXPECT_ERROR(make({.temperature = std::nanf("")}), "temperature: nan given");
  EXPECT_ERROR(make({.top_p = 1.5f}), "top-p: 1.5 given, expected 0 to 1");
  EXPECT_ERROR(make({.min_p = -1}), "min-p: -1 given, expected 0 to 1");
  EXPECT_ERROR(make({.repeat_penalty = 0}), "repeat penalty: 0 given");
  EXPECT_ERROR(make({.repeat_last_n = -1}), "repeat-last-n: -1 given");
  EXPECT_ERROR(make({.grammar = "root ::= missing"}), "missing");
  EXPECT_ERROR(make({.grammar = "rule ::= \"x\""}), "root");
  EXPECT_ERROR(make({.grammar = "root ::= root \"x\""}), "left recursion");
  Sampler sampler(*tokenizer_, {});
  EXPECT_ERROR(sampler.sample(logits({{7, std::nanf("")}})), "that of token 7 is not a number");
}

TEST(TokenizerFile, RefusesWhatIsNoModel) {
  EXPECT_ERROR(Tokenizer("/no/such/file"), "/no/such/file: is not a regular file");
  EXPECT_ERROR(Tokenizer(TIDAL_SOURCE_DIR "/CMakeLists.txt"), "libllama cannot read its vocabulary: invalid magic");
}

INSTANTIATE_TEST_SUITE_P(Models, Text, testing::Values("smollm2-135m", "qwen2.5-coder-0.5b"));

}  // namespace
}  // namespace tidal
