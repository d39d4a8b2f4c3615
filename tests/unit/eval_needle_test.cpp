// Needles, the prompts that hide them, places of a text, and answers: on a real vocabulary where tokens are needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "eval/greedy_answers.h"
#include "eval/needle.h"
#include "eval/next_token.h"
#include "support/error.h"
#include "unit/engine_setup.h"

namespace tidal::test {
namespace {

TEST(Needle, IsAnotherForEveryCellAndTheSameForTheSame) {
  for (const NeedleKind kind : {NeedleKind::PassKey, NeedleKind::Sentence}) {
    std::set<std::string> sentences;
    int count = 0;
    for (const uint64_t seed : {1, 2}) {
      for (const int length : {4096, 4097}) {
        for (const double depth : {0.1, 0.5, 0.9}) {
          for (int key = 0; key < 4; ++key, ++count) {
            const Needle needle = make_needle(kind, seed, length, depth, key);
            EXPECT_EQ(needle.sentence, make_needle(kind, seed, length, depth, key).sentence);
            EXPECT_THAT(needle.sentence, testing::HasSubstr(needle.answer));
            EXPECT_THAT(needle.question, testing::Not(testing::HasSubstr(needle.answer)));
            sentences.insert(needle.sentence);
          }
        }
      }
    }
    // 48 of 90,000 keys share one with a chance of about 1 %; of 144 sentences some come twice.
    EXPECT_GE(sentences.size(), kind == NeedleKind::PassKey ? size_t(count) - 1 : size_t(count) / 2);
  }
  const Needle key = make_needle(NeedleKind::PassKey, 7, 100, 0.5, 3);
  ASSERT_EQ(key.answer.size(), 5u);
  EXPECT_EQ(key.answer.find_first_not_of("0123456789"), std::string::npos);
  EXPECT_EQ(key.sentence, "\nThe pass key is " + key.answer + ". Remember it. " + key.answer + " is the pass key.\n");
  EXPECT_EQ(key.question, "\nWhat is the pass key? The pass key is");
}

TEST(Needle, IsFoundWhereTheAnswerBegins) {
  const Needle key{"", "", "12345"};
  EXPECT_TRUE(finds_needle(key, " 12345. Remember"));
  EXPECT_TRUE(finds_needle(key, "12345"));
  for (const char* said : {"", " ", "1234", "it is 12345", " 12346", "\n12345"}) EXPECT_FALSE(finds_needle(key, said));
  const Needle words{"", "", "eat a sandwich"};
  EXPECT_TRUE(finds_needle(words, " Eat a sandwich in"));
  EXPECT_FALSE(finds_needle(words, " eat sandwiches"));
}

TEST(Needle, Words) {
  for (const NeedleKind kind : {NeedleKind::PassKey, NeedleKind::Sentence}) {
    EXPECT_EQ(needle_kind_from(to_string(kind)), kind);
  }
  EXPECT_EQ(error_of([] { needle_kind_from("pin"); }), "--needle: 'pin' is not known, expected passkey or sentence");
}

/// On the vocabulary of the small real model.
class NeedlePrompts : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    const std::string path = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/smollm2-135m.gguf";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is missing; run tools/get_model.sh smollm2-135m";
    tokenizer_ = std::make_unique<Tokenizer>(path);
    for (int i = 0; i < 200; ++i) words_ += "word " + std::to_string(i) + " ";
  }
  TextTokens text() const { return {*tokenizer_, words_, "words.txt"}; }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::string words_;
};

TEST_F(NeedlePrompts, HaveTheLengthAndTheDepthAsked) {
  const TextTokens text = this->text();
  const Needle needle = make_needle(NeedleKind::PassKey, 1, 300, 0, 0);
  const auto sentence = tokenizer_->encode(needle.sentence, false, false);
  for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
    const NeedlePrompt prompt = needle_prompt(*tokenizer_, text, 10, needle, 300, depth);
    EXPECT_EQ(prompt.document.size() + prompt.question.size(), 300u);
    const auto at = std::search(prompt.document.begin(), prompt.document.end(), sentence.begin(), sentence.end());
    const size_t around = prompt.document.size() - sentence.size();
    EXPECT_EQ(at - prompt.document.begin(), static_cast<ptrdiff_t>(depth * static_cast<double>(around)));
    // Without the sentence it is the text, from its token 10 on.
    std::vector<Token> rest(prompt.document.begin(), at);
    rest.insert(rest.end(), at + static_cast<ptrdiff_t>(sentence.size()), prompt.document.end());
    EXPECT_EQ(rest, text.stretch(10, static_cast<int64_t>(around)));
    EXPECT_EQ(tokenizer_->decode(prompt.question), needle.question);
    EXPECT_GE(prompt.answer_tokens, static_cast<int>(tokenizer_->encode(needle.answer, false, false).size()) + 1);
  }
  EXPECT_THAT(error_of([&] { needle_prompt(*tokenizer_, text, 0, needle, 20, 0.5); }),
              testing::AllOf(testing::StartsWith("needle: with its question it has "),
                             testing::EndsWith("do not fit in a prompt of 20")));
}

TEST_F(NeedlePrompts, PlacesAreSpreadWithoutOverlap) {
  const TextTokens text = this->text();
  const int64_t size = text.size();
  EXPECT_EQ(text.places(1, 10), (std::vector<int64_t>{size / 2}));
  EXPECT_EQ(text.places(1, size), (std::vector<int64_t>{0}));
  for (const int count : {2, 3, 7}) {
    for (const int64_t length : {int64_t{1}, size / count - 1, size / count}) {
      const auto places = text.places(count, length);
      ASSERT_EQ(places.size(), static_cast<size_t>(count));
      for (size_t i = 0; i < places.size(); ++i) {
        EXPECT_GE(places[i], i == 0 ? 0 : places[i - 1] + length);
        EXPECT_LE(places[i] + length, size);
      }
    }
  }
  EXPECT_EQ(error_of([&] { text.places(1, size + 1); }),
            fmt::format("words.txt: holds {} tokens, but {} are needed", size, size + 1));
  EXPECT_EQ(error_of([&] { text.places(4, 300); }),
            fmt::format("words.txt: holds {} tokens, but 1200 are needed (4 places of 300)", size));
  EXPECT_EQ(error_of([&] { TextTokens(*tokenizer_, "", "none.txt"); }), "none.txt: is empty, expected a text");
  EXPECT_THAT(error_of([&] { TextTokens(*tokenizer_, "a\xff", "bad.txt"); }),
              testing::AllOf(testing::StartsWith("bad.txt: "), testing::HasSubstr("UTF-8")));
  EXPECT_NE(text.hash(), TextTokens(*tokenizer_, words_ + "x", "words.txt").hash());
  EXPECT_EQ(text.hash(), this->text().hash());
}

TEST_F(NeedlePrompts, AnswersAreThoseOfEveryCaseAlone) {
  // The random model's 97 tokens are the vocabulary's first.
  SmallEngine setup("cpu", GGML_TYPE_Q8_0, Plan::full(6),
                    {.context = 400, .tokens = 2048, .chunk = 128, .sequences = 3});
  const Sequence document = setup.prefilled(150, 1);
  const std::vector<Token> question = random_tokens(10, 2);
  const Plan plans[] = {Plan::full(6), small_plan(), Plan::tidal(6, 3, paper_policy(40))};
  std::vector<AnswerCase> cases;
  for (const Plan& plan : plans) {
    cases.push_back({&plan, QuestionAs::Sparse});
    cases.push_back({&plan, QuestionAs::Dense});
  }
  constexpr int kMost = 12;
  const auto answers = greedy_answers(setup.engine, *tokenizer_, document, question, cases, {.tokens = kMost});
  ASSERT_EQ(answers.size(), cases.size());
  std::set<std::string> texts;
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    Sequence sequence = document.fork();
    std::vector<float> logits;
    int steps = 0;
    if (cases[i].question == QuestionAs::Dense) {
      setup.engine.set_plan(Plan::full(6));
      logits = copy(setup.engine.prefill(sequence, question));
    }
    setup.engine.set_plan(*cases[i].plan);
    for (const Token token : question) {
      if (cases[i].question == QuestionAs::Dense) break;
      logits = copy(setup.engine.decode(sequence, token));
      ++steps;
    }
    std::string text;
    int count = 0;
    bool ended = false;
    for (;;) {
      const Token token = argmax(logits);
      ended = tokenizer_->is_end(token);
      if (ended) break;
      text += tokenizer_->piece(token);
      if (++count == kMost) break;
      logits = copy(setup.engine.decode(sequence, token));
      ++steps;
    }
    EXPECT_EQ(answers[i].text, text);
    EXPECT_EQ(answers[i].tokens, count);
    EXPECT_EQ(answers[i].ended, ended);
    EXPECT_EQ(answers[i].steps, steps);
    texts.insert(text);
  }
  EXPECT_GT(texts.size(), 1u) << "the test must tell plans apart";
  EXPECT_EQ(document.length(), 150);
  EXPECT_THAT(error_of([&] { greedy_answers(setup.engine, *tokenizer_, document, {}, cases, {.tokens = 1}); }),
              testing::HasSubstr("question: it is empty"));
  EXPECT_THAT(error_of([&] { greedy_answers(setup.engine, *tokenizer_, document, question, cases, {.tokens = 0}); }),
              testing::HasSubstr("at least 1"));
  EXPECT_THAT(error_of([&] { greedy_answers(setup.engine, *tokenizer_, document, question, cases, {.tokens = 300}); }),
              testing::HasSubstr("context of 400"));
}

}  // namespace
}  // namespace tidal::test
