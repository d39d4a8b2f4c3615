// RULER's tasks: what prompts hide and ask, how answers are scored, prompts in tokens on a real vocabulary.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "eval/next_token.h"
#include "eval/ruler_prompt.h"
#include "support/error.h"

namespace tidal::test {
namespace {

constexpr RulerTask kHidden[] = {RulerTask::MultiKey, RulerTask::MultiValue, RulerTask::MultiQuery,
                                 RulerTask::VariableTracking};

size_t occurrences(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

TEST(Ruler, IsAnotherForEveryPromptAndTheSameForTheSame) {
  for (const RulerTask task : kHidden) {
    std::set<std::string> questions;
    for (const uint64_t seed : {1, 2}) {
      for (const int length : {4096, 4097}) {
        for (int prompt = 0; prompt < 4; ++prompt) {
          const RulerCase made = ruler_case(task, {}, seed, length, prompt);
          const RulerCase again = ruler_case(task, {}, seed, length, prompt);
          EXPECT_EQ(made.hidden, again.hidden);
          EXPECT_EQ(made.question, again.question);
          EXPECT_EQ(made.wanted, again.wanted);
          questions.insert(joined(made.hidden));
        }
      }
    }
    EXPECT_EQ(questions.size(), 16u) << to_string(task);
  }
}

TEST(Ruler, NeedlesNameEveryNumberOnce) {
  for (const int needles : {1, 4, kRulerDepths}) {
    for (const RulerTask task : {RulerTask::MultiKey, RulerTask::MultiValue, RulerTask::MultiQuery}) {
      const RulerCase made = ruler_case(task, {.needles = needles}, 7, 4096, 3);
      ASSERT_EQ(made.hidden.size(), static_cast<size_t>(needles));
      const size_t wanted = task == RulerTask::MultiKey ? 1 : static_cast<size_t>(needles);
      EXPECT_EQ(std::set<std::string>(made.wanted.begin(), made.wanted.end()).size(), wanted);
      std::set<std::string> keys;
      for (const std::string& sentence : made.hidden) {
        EXPECT_THAT(sentence, testing::MatchesRegex("\nA secret number of the [a-z]+ [a-z]+ is [0-9]{7}\\.\n"));
        keys.insert(sentence.substr(0, sentence.find(" is ")));
      }
      EXPECT_EQ(keys.size(), task == RulerTask::MultiValue ? 1u : static_cast<size_t>(needles));
      for (const std::string& number : made.wanted) {
        EXPECT_EQ(occurrences(joined(made.hidden), number), 1u);
        EXPECT_EQ(occurrences(made.head + made.question, number), 0u);
        // It stands in a sentence of a key that the question names.
        const auto sentence = std::find_if(made.hidden.begin(), made.hidden.end(), [&](const std::string& own) {
          return own.find(number) != std::string::npos;
        });
        const size_t begin = sentence->find("the ");
        EXPECT_THAT(made.question, testing::HasSubstr(sentence->substr(begin, sentence->find(" is ") - begin)));
      }
    }
  }
}

/// The value of every variable by the assignments in their order.
std::map<std::string, std::string> values_by(const std::vector<std::string>& assignments) {
  std::map<std::string, std::string> values;
  for (const std::string& assignment : assignments) {
    EXPECT_THAT(assignment, testing::MatchesRegex("\nVAR [A-Z]{5} = (VAR [A-Z]{5}|[0-9]{5})\n"));
    const std::string name = assignment.substr(5, 5), right = assignment.substr(13, assignment.size() - 14);
    if (right.starts_with("VAR ")) {
      const auto known = values.find(right.substr(4));
      if (known == values.end()) {
        ADD_FAILURE() << assignment << " comes before what it reads";
        continue;
      }
      values[name] = known->second;
    } else {
      values[name] = right;
    }
  }
  return values;
}

TEST(Ruler, VariablesAreThoseThatHaveTheValue) {
  for (const auto& [chains, hops] : {std::pair{1, 1}, {1, 4}, {3, 4}, {8, 4}}) {
    const RulerCase made = ruler_case(RulerTask::VariableTracking, {.chains = chains, .hops = hops}, 5, 8192, 1);
    const auto variables = static_cast<size_t>(chains) * (static_cast<size_t>(hops) + 1);
    ASSERT_EQ(made.hidden.size(), variables);
    const std::map<std::string, std::string> values = values_by(made.hidden);
    ASSERT_EQ(values.size(), variables);
    const std::string value = values.at(made.wanted[0]);
    EXPECT_EQ(occurrences(made.question, value), 2u);
    std::set<std::string> having;
    for (const auto& [name, own] : values) {
      if (own == value) having.insert(name);
    }
    EXPECT_EQ(having, std::set<std::string>(made.wanted.begin(), made.wanted.end()));
    EXPECT_EQ(having.size(), static_cast<size_t>(hops) + 1);
    EXPECT_THAT(made.question, testing::HasSubstr("The " + std::to_string(hops + 1) + " variables"));
  }
}

TEST(Ruler, RefusesSizesByName) {
  const auto error = [](RulerTask task, const RulerSizes& sizes) {
    return error_of([&] { ruler_case(task, sizes, 1, 4096, 0); });
  };
  EXPECT_EQ(error(RulerTask::MultiKey, {.needles = 0}), "ruler: 0 needles in a prompt, expected 1 to 40");
  EXPECT_EQ(error(RulerTask::MultiValue, {.needles = 41}), "ruler: 41 needles in a prompt, expected 1 to 40");
  EXPECT_EQ(error(RulerTask::VariableTracking, {.chains = 0}), "ruler: 0 chains in a prompt, expected 1 to 40");
  EXPECT_EQ(error(RulerTask::VariableTracking, {.chains = 5, .hops = 8}),
            "ruler: 45 assignments in a prompt, expected 1 to 40");
  EXPECT_EQ(error(RulerTask::VariableTracking, {.hops = 2000000000}),
            "ruler: 2000000000 hops in a prompt, expected 1 to 40");
  EXPECT_THAT(error_of([] { ruler_task_from("qa"); }), testing::HasSubstr("'qa' is not known, expected niah_multikey"));
  for (const std::string& name : ruler_task_names()) EXPECT_EQ(to_string(ruler_task_from(name)), name);
}

TEST(Ruler, ScoreIsTheShareOfWhatIsNamed) {
  const std::vector<std::string> wanted = {"1234567", "Basket", "ABCDE", "lantern"};
  EXPECT_EQ(ruler_score(wanted, " 1234567, a basket, VAR abcde and LANTERNS."), 1.0);
  EXPECT_EQ(ruler_score(wanted, " 1234567 1234567 1234567"), 0.25);
  EXPECT_EQ(ruler_score(wanted, " 123456 and lan tern, xABCDEx basket"), 0.5);
  EXPECT_EQ(ruler_score(wanted, ""), 0.0);
}

TEST(Ruler, ErrorIsTheBinomialsWhereScoresAreAllOrNothing) {
  for (const int found : {0, 3, 10}) {
    std::vector<double> scores(10, 0.0);
    std::fill_n(scores.begin(), found, 1.0);
    EXPECT_DOUBLE_EQ(ruler_error(scores), share_error(found / 10.0, 10));
  }
  // Of .5, 0 and 1: variance 1/6 about .5, of the mean of three.
  EXPECT_DOUBLE_EQ(ruler_error(std::vector<double>{0.5}), std::sqrt(1.0 / 18));
  EXPECT_EQ(ruler_error({}), 0.0);
}

TEST(Ruler, ListsHaveTheirWordsAsOftenAsTheyShould) {
  std::vector<std::string> words;
  for (char a = 'a'; a <= 'z'; ++a) words.push_back(std::string("word") + a);
  const WordList list = numbered_words(words, 3, 20, {6, 2}, Splitmix(4));
  EXPECT_EQ(list.text, numbered_words(words, 3, 20, {6, 2}, Splitmix(4)).text);
  EXPECT_NE(list.text, numbered_words(words, 3, 20, {6, 2}, Splitmix(5)).text);
  EXPECT_THAT(list.text, testing::StartsWith("1. word"));
  EXPECT_THAT(list.text, testing::HasSubstr(" 58. word"));  // 3 times 6 and 20 times 2
  EXPECT_THAT(list.text, testing::Not(testing::HasSubstr(" 59. ")));
  const std::set<std::string> common(list.common.begin(), list.common.end());
  EXPECT_EQ(common.size(), 3u);
  int others = 0;
  for (const std::string& word : words) {
    const size_t count = occurrences(list.text, word);
    if (common.contains(word)) {
      EXPECT_EQ(count, 6u) << word;
    } else {
      EXPECT_TRUE(count == 0 || count == 2) << word;
      others += count == 2;
    }
  }
  EXPECT_EQ(others, 20);
  EXPECT_EQ(error_of([&] {
              numbered_words(words, 10, 17, {6, 2}, Splitmix(4));
            }),
            "cwe: the text has 26 words of one token, five letters or more, but 27 are needed");
}

/// On the vocabulary of the small real model.
class RulerPrompts : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    const std::string path = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/smollm2-135m.gguf";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is missing; run tools/get_model.sh smollm2-135m";
    tokenizer_ = std::make_unique<Tokenizer>(path);
    std::string words;
    for (int i = 0; i < 700; ++i) words += "Their water under 9 trees. ";
    words += kWords;
    text_ = std::make_unique<TextTokens>(*tokenizer_, words, "words.txt");
    texts_ = {text_.get(), single_token_words(*tokenizer_, words)};
  }

  static constexpr const char* kWords =
      "house window garden street river mountain summer winter morning evening paper letter number music color animal "
      "family mother father brother sister friend doctor teacher student school college market church station bridge "
      "island ocean forest desert valley flower orange banana carrot potato butter cheese coffee dinner supper "
      "breakfast";

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TextTokens> text_;
  RulerTexts texts_;
};

TEST_F(RulerPrompts, HaveTheLengthAskedAndHideEverythingOnce) {
  TextTokens noise = noise_text(*tokenizer_, 900);
  for (const RulerTask task : kHidden) {
    for (const int length : {500, 777}) {
      for (TextTokens* const haystack : {text_.get(), &noise}) {
        const RulerTexts texts{haystack, {}};
        const RulerPrompt prompt = ruler_prompt(*tokenizer_, texts, 10, task, {}, 3, length, 2);
        const RulerCase made = ruler_case(task, {}, 3, length, 2);
        EXPECT_EQ(prompt.document.size() + prompt.question.size(), static_cast<size_t>(length));
        EXPECT_EQ(tokenizer_->decode(prompt.question), made.question);
        EXPECT_EQ(prompt.wanted, made.wanted);
        const std::string document = tokenizer_->decode(prompt.document);
        EXPECT_THAT(document, testing::StartsWith(made.head));
        size_t last = 0;
        for (const std::string& sentence : made.hidden) {
          EXPECT_EQ(occurrences(document, sentence), 1u);
          EXPECT_GE(document.find(sentence), last) << "in another order";
          last = document.find(sentence);
        }
        // Without what it hides it is the haystack from its token 10 on.
        std::string rest = document.substr(made.head.size());
        for (const std::string& sentence : made.hidden) rest.erase(rest.find(sentence), sentence.size());
        EXPECT_TRUE(tokenizer_->decode(haystack->stretch(10, 900 + haystack->special())).starts_with(rest));
        const auto answer = tokenizer_->encode(" " + joined(made.wanted), false, false).size();
        EXPECT_GE(prompt.answer_tokens, static_cast<int>(answer) + 1);
      }
    }
    EXPECT_EQ(error_of([&] { ruler_prompt(*tokenizer_, texts_, 0, task, {}, 1, 50, 0); }).find(to_string(task)), 0u);
  }
}

TEST_F(RulerPrompts, WordsAreOneTokenAndNoPartOfAnother) {
  const std::vector<std::string> words =
      single_token_words(*tokenizer_, "Under their water, the water; Water waters! other another 12 under-their");
  EXPECT_THAT(words, testing::UnorderedElementsAre("their", "waters", "another", "under"));
}

TEST_F(RulerPrompts, ListsFillTheLength) {
  for (const int length : {420, 421, 460}) {
    const RulerPrompt prompt = ruler_prompt(*tokenizer_, texts_, 0, RulerTask::CommonWords, {}, 1, length, 0);
    EXPECT_EQ(prompt.document.size() + prompt.question.size(), static_cast<size_t>(length));
    ASSERT_EQ(prompt.wanted.size(), 10u);
    const std::string document = tokenizer_->decode(prompt.document);
    const std::string list = document.substr(document.find("\n\n1. "));
    for (const std::string& word : prompt.wanted) EXPECT_EQ(occurrences(list, ". " + word), 6u) << word;
    // In front there is less text than a further word would take.
    const size_t front = document.find("In the following list");
    EXPECT_LE(tokenizer_->encode(document.substr(0, front), false, false).size(), 8u);
  }
  EXPECT_THAT(error_of([&] { ruler_prompt(*tokenizer_, texts_, 0, RulerTask::CommonWords, {}, 1, 3000, 0); }),
              testing::StartsWith("cwe: the text has "));
  EXPECT_THAT(error_of([&] { ruler_prompt(*tokenizer_, texts_, 0, RulerTask::CommonWords, {}, 1, 200, 0); }),
              testing::AllOf(testing::StartsWith("cwe: what it hides"), testing::EndsWith("a prompt of 200")));
  EXPECT_EQ(error_of([&] { ruler_prompt(*tokenizer_, texts_, 0, RulerTask::CommonWords, {.common = 0}, 1, 420, 0); }),
            "ruler: 0 common words in a prompt, expected 1 to 40");
}

}  // namespace
}  // namespace tidal::test
