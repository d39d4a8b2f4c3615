// What a file says about its tokenizer, on edited copies of real vocabularies, against libllama's tokens.
#include <gtest/gtest.h>
#include <llama.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "support/edited_vocabulary.h"
#include "support/error.h"
#include "text/deep_stack.h"
#include "text/tokenizer.h"

namespace tidal {
namespace {

using test::EditedVocabulary;

class TokenizerFlags : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    model_ = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/smollm2-135m.gguf";
    if (!std::filesystem::exists(model_)) GTEST_SKIP() << model_ << " is missing; run tools/get_model.sh smollm2-135m";
  }
  std::string model_;
};

std::vector<Token> by_libllama(const Tokenizer& tokenizer, const std::string& text, bool add_special) {
  std::vector<Token> tokens(text.size() + 8);
  const int count = llama_tokenize(tokenizer.vocab(), text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                   static_cast<int32_t>(tokens.size()), add_special, false);
  tokens.resize(static_cast<size_t>(std::max(count, 0)));
  return tokens;
}

TEST_F(TokenizerFlags, APromptBeginsByBosAndDoesNotEndByEos) {
  const std::string text = "In the beginning";
  for (const bool bos : {false, true}) {
    for (const bool eos : {false, true}) {
      const EditedVocabulary file(model_, [&](gguf_context* keys) {
        gguf_set_val_bool(keys, "tokenizer.ggml.add_bos_token", bos);
        gguf_set_val_bool(keys, "tokenizer.ggml.add_eos_token", eos);
      });
      const Tokenizer tokenizer(file.path());
      std::vector<Token> expected = by_libllama(tokenizer, text, false);
      if (bos) expected.insert(expected.begin(), llama_vocab_bos(tokenizer.vocab()));
      EXPECT_EQ(tokenizer.encode(text, true, false), expected) << bos << eos;
      if (eos) expected.push_back(llama_vocab_eos(tokenizer.vocab()));
      EXPECT_EQ(by_libllama(tokenizer, text, true), expected) << "libllama ends texts otherwise than it did";
      EXPECT_EQ(tokenizer.encode("", true, false).size(), bos ? 1u : 0u);
    }
  }
}

// An own EOS at the end of a prompt is the user's; only the one that was added goes.
TEST_F(TokenizerFlags, AnEosOfThePromptStays) {
  const EditedVocabulary file(
      model_, [](gguf_context* keys) { gguf_set_val_bool(keys, "tokenizer.ggml.add_eos_token", true); });
  const Tokenizer tokenizer(file.path());
  const Token end = llama_vocab_eos(tokenizer.vocab());
  const std::vector<Token> tokens = tokenizer.encode("Hi" + tokenizer.piece(end, true), true, true);
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens.back(), end);
}

TEST_F(TokenizerFlags, SaysWhatIsGuessed) {
  EXPECT_TRUE(Tokenizer(model_).warnings().empty());
  const EditedVocabulary file(model_, [](gguf_context* keys) { gguf_remove_key(keys, "tokenizer.ggml.pre"); });
  const std::vector<std::string> warnings = Tokenizer(file.path()).warnings();
  ASSERT_FALSE(warnings.empty());
  EXPECT_EQ(warnings.front(), "missing pre-tokenizer type, using: 'default'");
}

// libllama ends the process when it has to add a token that it does not know.
TEST_F(TokenizerFlags, RefusesABosThatIsNone) {
  const EditedVocabulary file(model_, [](gguf_context* keys) {
    gguf_set_val_str(keys, "tokenizer.ggml.model", "t5");
    gguf_remove_key(keys, "tokenizer.ggml.bos_token_id");
    gguf_set_val_bool(keys, "tokenizer.ggml.add_bos_token", true);
  });
  EXPECT_NE(test::error_of([&] { Tokenizer tokenizer(file.path()); }).find("BOS token, but the file names none"),
            std::string::npos);
}

/// Bytes of this thread's stack that were ever used.
size_t used_stack() {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* begin = nullptr;
  size_t bytes = 0;
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((bytes + page - 1) / page);
  if (::mincore(begin, bytes, resident.data()) != 0) return 0;
  size_t unused = 0;
  while (unused < resident.size() && (resident[unused] & 1) == 0) ++unused;
  return bytes - std::min(bytes, unused * page);
}

// A paragraph of Han characters, which has no white space, by a pre-tokenizer that libllama runs through std::regex.
TEST_F(TokenizerFlags, LongWordsGetTheStackThatTheyNeed) {
  const EditedVocabulary file(model_,
                              [](gguf_context* keys) { gguf_set_val_str(keys, "tokenizer.ggml.pre", "deepseek-v3"); });
  const Tokenizer tokenizer(file.path());
  constexpr size_t kCharacters = 10000;  // a few MB of stack, which any program's first thread has
  std::string text = "Chapter one.\n";
  for (size_t i = 0; i < kCharacters; ++i) text += i % 2 ? "\xE4\xB8\xAD" : "\xE6\x96\x87";
  const size_t stack = pretokenizer_stack(text);
  ASSERT_GT(stack, kCharacters * 500);
  std::vector<Token> expected;
  size_t used = 0;
  run_on_stack(stack, [&] {
    expected = by_libllama(tokenizer, text, false);
    used = used_stack();
  });
  EXPECT_EQ(tokenizer.encode(text, false, false), expected);
  // It takes stack for every character (were it not so, nothing of this would be needed), and less than there is.
  EXPECT_GT(used, kCharacters * 64);
  EXPECT_LT(used, stack);
}

TEST(DeepStack, IsForTheLongestWordAlone) {
  std::string words, spaces;
  for (int i = 0; i < 10000; ++i) words += "word ", spaces += "x\xE3\x80\x80";
  EXPECT_LT(pretokenizer_stack(words), pretokenizer_stack("a much longer word: incomprehensibilities") + 1);
  // U+3000 is white space as well, of which a pattern may take all.
  EXPECT_GT(pretokenizer_stack(spaces), 20000u * 321);
  EXPECT_GT(pretokenizer_stack(std::string(20000, ' ')), 20000u * 321);
  EXPECT_TRUE(pretokenizer_recurses(""));
  EXPECT_FALSE(pretokenizer_recurses("llama-bpe"));
}

TEST(DeepStack, ThrowsWhatWasThrownThere) {
  EXPECT_EQ(test::error_of([] { run_on_stack(1 << 20, [] { throw Error("from below"); }); }), "from below");
}

// The stack is asked for before libllama sees a text; what needs more than the most is refused by encode().
TEST(DeepStack, GrowsWithTheWord) {
  const size_t once = pretokenizer_stack(std::string(1000, 'a')), twice = pretokenizer_stack(std::string(2000, 'a'));
  EXPECT_GT(once, 1000u * 321);
  EXPECT_GE(twice - once, 1000u * 321);
  EXPECT_LT(twice, kMostStack);
}

}  // namespace
}  // namespace tidal
