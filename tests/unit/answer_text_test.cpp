// Stop strings: whatever the pieces, the text is that before the first stop string, and no part of one was given out.
#include "generation/answer_text.h"

#include <gtest/gtest.h>

#include <random>

namespace tidal {
namespace {

TEST(AnswerText, WithoutStopsGivesWholeCharacters) {
  AnswerText text;
  EXPECT_EQ(text.push("a\xC3"), "a");
  EXPECT_EQ(text.push("\xA9z"), "\xC3\xA9z");
  EXPECT_EQ(text.push("\xE2\x82"), "");
  EXPECT_EQ(text.finish(), "\xE2\x82");
  EXPECT_FALSE(text.stopped());
}

TEST(AnswerText, GivesWhatMightHaveBeenAStop) {
  AnswerText text({"END", ""});
  EXPECT_EQ(text.push("xEN"), "x");
  EXPECT_EQ(text.push("EN"), "EN");
  EXPECT_EQ(text.push("T"), "ENT");
  EXPECT_EQ(text.push("E"), "");
  EXPECT_EQ(text.finish(), "E");
}

TEST(AnswerText, TheEarliestStopEndsIt) {
  AnswerText text({"later", "ate"});
  EXPECT_EQ(text.push("a later"), "a ");
  EXPECT_EQ(text.stop(), "later");
  EXPECT_EQ(text.push("more"), "");
  EXPECT_EQ(text.finish(), "");
}

TEST(AnswerText, RandomPiecesGiveTheTextBeforeTheFirstStop) {
  std::mt19937 random(5);
  const auto word = [&](size_t most) {
    std::string made;
    for (size_t n = random() % most; made.size() < n;) made += static_cast<char>('a' + random() % 3);
    return made;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (size_t n = random() % 4; stops.size() < n;) stops.push_back(word(6));
    const std::string whole = word(40);
    AnswerText text(stops);
    std::string given;
    for (size_t at = 0; at < whole.size() && !text.stopped();) {
      const size_t length = 1 + random() % 5;
      given += text.push(whole.substr(at, length));
      at += length;
    }
    given += text.finish();
    // A stop string ends the answer once it is complete, so the one that is complete first decides, then the longest.
    size_t end = std::string::npos;
    for (const std::string& stop : stops) {
      if (!stop.empty()) end = std::min(end, whole.find(stop));
    }
    ASSERT_EQ(whole.substr(0, given.size()), given);
    for (const std::string& stop : stops) {
      if (!stop.empty()) {
        ASSERT_EQ(given.find(stop), std::string::npos) << whole << " " << stop;
      }
    }
    ASSERT_EQ(text.stopped(), end != std::string::npos) << whole;
    if (!text.stopped()) {
      ASSERT_EQ(given, whole);
    }
  }
}

}  // namespace
}  // namespace tidal
