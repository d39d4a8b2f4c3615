// The texts of a calibration, cut from a text whose tokens tell where they stand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>

#include "eval/calibration_texts.h"
#include "support/error.h"

namespace tidal {
namespace {

using testing::HasSubstr;

class CalibrationTextsTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("TIDAL_MODELS");
    const std::string path = (folder ? folder : std::string(TIDAL_SOURCE_DIR "/models")) + "/smollm2-135m.gguf";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is missing; run tools/get_model.sh smollm2-135m";
    tokenizer_ = std::make_unique<Tokenizer>(path);
    for (int i = 0; i < 3000; ++i) text_ += "w" + std::to_string(i) + " ";
    tokens_ = tokenizer_->encode(text_, false, false);
  }

  CalibrationTexts cut(const CalibrationShape& shape, int budget = 32) const {
    return calibration_texts(*tokenizer_, text_, "novel.txt", shape, budget);
  }
  std::string error(const CalibrationShape& shape, int budget = 32) const {
    return test::error_of([&] { cut(shape, budget); });
  }
  /// Where in the text these tokens stand; -1 for nowhere.
  int64_t position(const std::vector<Token>& part) const {
    const auto found = std::search(tokens_.begin(), tokens_.end(), part.begin(), part.end());
    return found == tokens_.end() ? -1 : found - tokens_.begin();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::string text_;
  std::vector<Token> tokens_;
};

TEST_F(CalibrationTextsTest, NoTokenIsDecodedAtTwoPlaces) {
  for (const int held_out : {0, 1, 3}) {
    const CalibrationTexts cuts =
        cut({.prefix = 300, .steps = 20, .places = 7, .prompts = 3, .held_out = held_out, .stretches = 1});
    EXPECT_EQ(cuts.prefix, 300);
    EXPECT_EQ(cuts.choice, 10);
    ASSERT_EQ(cuts.texts.size(), static_cast<size_t>(10 + held_out));
    std::set<int64_t> decoded, starts;
    for (const CalibrationText& text : cuts.texts) {
      EXPECT_EQ(text.prefix.size(), 300u);
      if (text.retrieval) continue;
      std::vector<Token> whole = text.prefix;
      whole.insert(whole.end(), text.steps.begin(), text.steps.end());
      const int64_t at = position(whole);
      ASSERT_GE(at, 0);
      starts.insert(at);
      ASSERT_EQ(text.steps.size(), 20u);
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(decoded.insert(at + 300 + i).second);
    }
    // From the start of the text to its end.
    EXPECT_EQ(*starts.begin(), 0);
    EXPECT_EQ(*starts.rbegin(), static_cast<int64_t>(tokens_.size()) - 320);
  }
}

TEST_F(CalibrationTextsTest, StretchesFollowEachOther) {
  const CalibrationTexts cuts =
      cut({.prefix = 300, .steps = 20, .places = 3, .prompts = 1, .held_out = 1, .stretches = 3});
  EXPECT_EQ(cuts.first, 4);
  EXPECT_EQ(cuts.choice, 4 + 2 * 3);
  ASSERT_EQ(cuts.texts.size(), 4u + 6 + 3);
  std::set<int64_t> decoded;
  for (size_t i = 0; i < cuts.texts.size(); ++i) {
    const CalibrationText& text = cuts.texts[i];
    if (text.retrieval) continue;
    std::vector<Token> whole = text.prefix;
    whole.insert(whole.end(), text.steps.begin(), text.steps.end());
    const int64_t at = position(whole);
    ASSERT_GE(at, 0);
    ASSERT_EQ(text.steps.size(), 20u);
    const auto length = static_cast<int64_t>(text.prefix.size());
    for (int s = 0; s < 20; ++s) EXPECT_TRUE(decoded.insert(at + length + s).second);
    if (length == 300) continue;
    const CalibrationText& parent = cuts.texts[static_cast<size_t>(text.parent)];
    EXPECT_EQ(parent.prefix, std::vector<Token>(text.prefix.begin(), text.prefix.begin() + 300));
    EXPECT_EQ(text.shared, 300);
  }
  EXPECT_EQ(decoded.size(), 4u * 3 * 20);
}

TEST_F(CalibrationTextsTest, PromptsHideAKeyAndAskForIt) {
  const CalibrationTexts cuts =
      cut({.prefix = 300, .steps = 20, .places = 6, .prompts = 3, .held_out = 2, .stretches = 1});
  std::set<std::string> keys;
  std::vector<double> depths;
  for (int i = 0; i < cuts.choice; ++i) {
    const CalibrationText& text = cuts.texts[static_cast<size_t>(i)];
    if (!text.retrieval) continue;
    const std::string question = tokenizer_->decode(text.steps), document = tokenizer_->decode(text.prefix);
    ASSERT_THAT(question, testing::StartsWith("\nWhat is the pass key? The pass key is "));
    const std::string key = question.substr(question.size() - 5);
    EXPECT_TRUE(keys.insert(key).second);
    EXPECT_THAT(document, HasSubstr("\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n"));
    // What is said to be the parent's is.
    ASSERT_TRUE(text.parent >= 0 && text.parent < i);
    const CalibrationText& parent = cuts.texts[static_cast<size_t>(text.parent)];
    EXPECT_FALSE(parent.retrieval);
    EXPECT_TRUE(std::equal(text.prefix.begin(), text.prefix.begin() + text.shared, parent.prefix.begin()));
    depths.push_back(text.shared / 300.0);
  }
  ASSERT_EQ(depths.size(), 3u);
  // A sixth, a half and five sixths of what is left beside the sentence.
  EXPECT_NEAR(depths[0], 1 / 6.0, 0.05);
  EXPECT_NEAR(depths[1], 3 / 6.0, 0.07);
  EXPECT_NEAR(depths[2], 5 / 6.0, 0.10);
}

TEST_F(CalibrationTextsTest, TheFirstFewTextsHoldSomeOfBoth) {
  const CalibrationTexts cuts =
      cut({.prefix = 300, .steps = 20, .places = 12, .prompts = 4, .held_out = 4, .stretches = 1});
  int retrieval = 0, early = 0, late = 0;
  for (size_t i = 0; i < 8; ++i) {
    const CalibrationText& text = cuts.texts[i];
    retrieval += text.retrieval;
    if (text.retrieval) continue;
    (position(text.prefix) < static_cast<int64_t>(tokens_.size()) / 2 ? early : late)++;
  }
  EXPECT_GE(retrieval, 2);
  EXPECT_GE(early, 2);
  EXPECT_GE(late, 2);
}

TEST_F(CalibrationTextsTest, TheDefaultPrefixFitsTheText) {
  const CalibrationShape shape = {.prefix = 0, .steps = 20, .places = 4, .prompts = 1, .held_out = 1, .stretches = 1};
  ASSERT_GT(tokens_.size(), 2u * 4096);
  EXPECT_EQ(cut(shape).prefix, 4096);
  // Half of a text that is too short for that; twice the budget at least.
  text_ = tokenizer_->decode(std::span(tokens_).first(2000));
  EXPECT_EQ(cut(shape).prefix, 1000);
  text_ = tokenizer_->decode(std::span(tokens_).first(600));
  EXPECT_EQ(cut(shape).prefix, 300);
  EXPECT_EQ(cut(shape, 240).prefix, 480);
}

TEST_F(CalibrationTextsTest, ATextThatIsTooShortSaysWhatIsNeeded) {
  const CalibrationShape shape = {.prefix = 0, .steps = 20, .places = 4, .prompts = 1, .held_out = 1, .stretches = 1};
  EXPECT_EQ(calibration_tokens_needed(shape, 32), 64 + 100);
  text_ = tokenizer_->decode(std::span(tokens_).first(163));
  EXPECT_EQ(error(shape),
            "novel.txt: 163 tokens are too few to calibrate with, at least 164 are needed: a prefix of 64 and 20 steps "
            "at each of 5 places");
  text_ = tokenizer_->decode(std::span(tokens_).first(164));
  EXPECT_EQ(error(shape), "no error");
  text_.clear();
  EXPECT_THAT(error(shape), HasSubstr("0 tokens are too few"));
}

TEST_F(CalibrationTextsTest, NumbersOutOfRange) {
  EXPECT_THAT(error({.steps = 0}), HasSubstr("0 steps"));
  EXPECT_THAT(error({.stretches = 0}), HasSubstr("0 stretches"));
  EXPECT_THAT(error({.places = 0, .prompts = 0}), HasSubstr("0 places"));
  EXPECT_THAT(error({.places = 2, .prompts = 3}), HasSubstr("3 retrieval prompts"));
  EXPECT_THAT(error({.prompts = -1}), HasSubstr("-1 retrieval prompts"));
  EXPECT_THAT(error({.held_out = -1}), HasSubstr("-1 places held out"));
  EXPECT_THAT(error({.prefix = -1}), HasSubstr("prefix of -1"));
  EXPECT_THAT(error({.prefix = 32}), HasSubstr("a budget of 32 leaves nothing out"));
  EXPECT_THAT(error({.prefix = 40, .steps = 4, .places = 2, .prompts = 1, .held_out = 0, .stretches = 1}, 8),
              HasSubstr("no error"));
  EXPECT_THAT(error({.prefix = 20, .steps = 4, .places = 2, .prompts = 1, .held_out = 0, .stretches = 1}, 8),
              HasSubstr("no room"));
}

}  // namespace
}  // namespace tidal
