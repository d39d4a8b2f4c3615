#include "core/utf8.h"

#include <gtest/gtest.h>

#include "support/error.h"

namespace tidal {
namespace {

using namespace std::string_literals;

// The first and last character of every row of Unicode's table 3-7.
const std::string kEdges[] = {"\x00"s,
                              "\x7F"s,
                              "\xC2\x80"s,
                              "\xDF\xBF"s,
                              "\xE0\xA0\x80"s,
                              "\xE0\xBF\xBF"s,
                              "\xE1\x80\x80"s,
                              "\xEC\xBF\xBF"s,
                              "\xED\x80\x80"s,
                              "\xED\x9F\xBF"s,
                              "\xEE\x80\x80"s,
                              "\xEF\xBF\xBF"s,
                              "\xF0\x90\x80\x80"s,
                              "\xF0\xBF\xBF\xBF"s,
                              "\xF1\x80\x80\x80"s,
                              "\xF3\xBF\xBF\xBF"s,
                              "\xF4\x80\x80\x80"s,
                              "\xF4\x8F\xBF\xBF"s};

// Just outside of them: lone continuation, overlong forms, surrogates, beyond U+10FFFF, continuations that are none.
const std::string kWrong[] = {"\x80"s,
                              "\xBF"s,
                              "\xC0\x80"s,
                              "\xC1\xBF"s,
                              "\xC2\x7F"s,
                              "\xC2\xC0"s,
                              "\xE0\x9F\xBF"s,
                              "\xED\xA0\x80"s,
                              "\xED\xBF\xBF"s,
                              "\xE1\x80\x7F"s,
                              "\xE1\x80\xC0"s,
                              "\xF0\x8F\xBF\xBF"s,
                              "\xF4\x90\x80\x80"s,
                              "\xF5\x80\x80\x80"s,
                              "\xFF"s,
                              "\xF1\x80\x80\x7F"s};

TEST(Utf8, AcceptsEveryRowOfTheTable) {
  std::string all;
  for (const std::string& character : kEdges) {
    EXPECT_EQ(find_invalid_utf8(character), std::nullopt) << testing::PrintToString(character);
    all += character;
  }
  EXPECT_EQ(find_invalid_utf8(all), std::nullopt);
  EXPECT_EQ(find_invalid_utf8(""), std::nullopt);
}

TEST(Utf8, FindsTheFirstWrongByte) {
  for (const std::string& wrong : kWrong) {
    EXPECT_EQ(find_invalid_utf8(wrong), 0) << testing::PrintToString(wrong);
    EXPECT_EQ(find_invalid_utf8("\xC3\xA9" + wrong + "\xFF"), 2) << testing::PrintToString(wrong);
  }
}

TEST(Utf8, RefusesACharacterThatIsCutOff) {
  for (const std::string& character : kEdges) {
    for (size_t bytes = 1; bytes < character.size(); ++bytes) {
      EXPECT_EQ(find_invalid_utf8("ab" + character.substr(0, bytes)), 2) << testing::PrintToString(character);
    }
  }
}

TEST(Utf8Stream, GivesOutCharactersWhole) {
  std::string text;
  for (const std::string& character : kEdges) text += character;
  for (size_t step = 1; step <= 5; ++step) {
    Utf8Stream stream;
    std::string out;
    for (size_t at = 0; at < text.size(); at += step) {
      const std::string whole = stream.push(text.substr(at, step));
      EXPECT_EQ(find_invalid_utf8(whole), std::nullopt);
      out += whole;
      EXPECT_LT(at + std::min(step, text.size() - at) - out.size(), 4u) << "holds back more than a character";
    }
    EXPECT_EQ(out, text);
    EXPECT_EQ(stream.finish(), "");
  }
}

// Back to the bytes, as a reader of JSON would.
std::string bytes_of(const std::string& text) {
  std::string bytes;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\') {
      bytes += text[at];
    } else if (text[++at] == '\\') {
      bytes += '\\';
    } else {
      bytes += static_cast<char>(std::stoi(text.substr(at + 1, 2), nullptr, 16));
      at += 2;
    }
  }
  return bytes;
}

TEST(Utf8, AnyNameBecomesTextAndCanBeHadBack) {
  EXPECT_EQ(as_utf8("notes\xE9.txt"), "notes\\xE9.txt");
  EXPECT_EQ(as_utf8("a\\b caf\xC3\xA9"), "a\\b caf\xC3\xA9");
  EXPECT_EQ(file_name("/tmp/d\xE9/notes\xE9.txt"), "notes\\xE9.txt");
  for (const std::string& wrong : kWrong) {
    std::string name = "caf\xC3\xA9 \\";
    name += wrong;
    name += "\\\xE4";
    EXPECT_EQ(find_invalid_utf8(as_utf8(name)), std::nullopt);
    EXPECT_EQ(bytes_of(as_utf8(name)), name);
  }
}

TEST(Utf8, TextHasNoNul) {
  EXPECT_EQ(test::error_of([] { check_text("ab\0c"s, "x.txt"); }), "x.txt: byte 2 is NUL (0x00), expected text");
  EXPECT_EQ(test::error_of([] { check_text("ab\xE9", "x.txt"); }), "x.txt: byte 2 (0xe9) is not valid UTF-8");
  check_text("caf\xC3\xA9", "x.txt");
}

TEST(Utf8Stream, LosesNothingThatIsNoCharacter) {
  for (const std::string& wrong : kWrong) {
    Utf8Stream stream;
    std::string out = stream.push("a");
    for (const char byte : wrong) out += stream.push(std::string(1, byte));
    out += stream.push("b") + stream.finish();
    EXPECT_EQ(out, "a" + wrong + "b") << testing::PrintToString(wrong);
  }
  Utf8Stream cut;
  EXPECT_EQ(cut.push("x\xE4\xB8"), "x");
  EXPECT_EQ(cut.finish(), "\xE4\xB8");
  EXPECT_EQ(cut.finish(), "");
}

}  // namespace
}  // namespace tidal
