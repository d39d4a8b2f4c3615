// LongBench's metrics against values worked out by hand from their definitions.
#include "eval/text_metrics.h"

#include <gtest/gtest.h>

#include <vector>

#include "eval/text_metrics_unicode.h"
#include "support/error.h"

namespace tidal {
namespace {

// What the rouge package's small number in the denominator leaves of an F of 1.
constexpr double kRougeEpsilon = 1e-8;

TEST(NormaliseAnswer, DropsCasePunctuationAndArticles) {
  EXPECT_EQ(normalise_answer("The  Quick, brown-fox!"), "quick brownfox");
  EXPECT_EQ(normalise_answer("A theatre, an Athenian; the a"), "theatre athenian");
  EXPECT_EQ(normalise_answer("don't\t stop\n"), "dont stop");
  EXPECT_EQ(normalise_answer(""), "");
  EXPECT_EQ(normalise_answer("the . a !"), "");
  // An underscore is punctuation, so what it held together is one word.
  EXPECT_EQ(normalise_answer("the_end"), "theend");
}

TEST(NormaliseAnswer, TreatsOtherScriptsAsPythonDoes) {
  EXPECT_EQ(normalise_answer("\xC3\x89"
                             "A the \xC3\xA9t\xC3\xA9"),
            "\xC3\xA9"
            "a \xC3\xA9t\xC3\xA9");                                 // ÉA the été
  EXPECT_EQ(normalise_answer("x\xC2\xA0the\xE3\x80\x80y"), "x y");  // no-break and ideographic space
  EXPECT_EQ(normalise_answer("\xE2\x80\x9Cthe\xE2\x80\x9D"),
            "\xE2\x80\x9C \xE2\x80\x9D");  // only ASCII punctuation goes
  EXPECT_EQ(normalise_answer("\xCE\x9F\xCE\x94\xCE\x9F\xCE\xA3"), "\xCE\xBF\xCE\xB4\xCE\xBF\xCF\x82");  // a final sigma
  EXPECT_EQ(normalise_answer("a\xC2\xB2"), "a\xC2\xB2");    // a superscript is part of the word
  EXPECT_EQ(normalise_answer("x\xFFy"), "x\xEF\xBF\xBDy");  // no UTF-8
}

TEST(QaF1, CountsSharedWords) {
  EXPECT_DOUBLE_EQ(qa_f1_score("The echo sounder.", "an echo sounder"), 1);
  // Two of the three words, two of two: P = 2/3, R = 1, F = 4/5.
  EXPECT_DOUBLE_EQ(qa_f1_score("blue echo sounder", "echo sounder"), 0.8);
  // Repetitions count as often as the other has them: 1 of 3 and 1 of 1.
  EXPECT_DOUBLE_EQ(qa_f1_score("no no no", "no"), 0.5);
  EXPECT_DOUBLE_EQ(qa_f1_score("no no yes", "yes no no"), 1);
}

TEST(QaF1, IsZeroWithoutSharedWords) {
  EXPECT_EQ(qa_f1_score("", "echo"), 0);
  EXPECT_EQ(qa_f1_score("echo", ""), 0);
  EXPECT_EQ(qa_f1_score("", ""), 0);
  EXPECT_EQ(qa_f1_score("the", "the"), 0);  // nothing is left of either
  EXPECT_EQ(qa_f1_score("lead line", "echo sounder"), 0);
}

TEST(RougeL, CountsTheCommonSubsequence) {
  EXPECT_NEAR(rouge_l_score("the lake is deep", "the lake is deep"), 1, kRougeEpsilon);
  // b c of a b c d and b c x d: with d three words of four on both sides.
  EXPECT_NEAR(rouge_l_score("a b c d", "b c x d"), 0.75, kRougeEpsilon);
  // Two of four words, two of two: 2 * .5 / 1.5.
  EXPECT_NEAR(rouge_l_score("x a y b", "a b"), 2.0 / 3, kRougeEpsilon);
  // Case and punctuation are the words' own.
  EXPECT_EQ(rouge_l_score("Lake, lake!", "lake"), 0);
}

TEST(RougeL, JoinsSentencesIntoSets) {
  // "a b" has a with the first and b with the second sentence: the union is all.
  EXPECT_NEAR(rouge_l_score("a b", "a x. b y"), 2 * (1 * 0.5) / 1.5, kRougeEpsilon);
  // Different words count once: {a, b} of {a, b}.
  EXPECT_NEAR(rouge_l_score("a a b", "a b b"), 1, kRougeEpsilon);
  // Order matters inside a sentence: of "b a" and "a b" only one word; on a tie the way back drops the prediction's
  // last word first, so that "b" stays. One of two words on both sides.
  EXPECT_NEAR(rouge_l_score("b a", "a b"), 0.5, kRougeEpsilon);
  // "3.5" is two sentences. White space after the last dot is a sentence of one empty word: {a, ""} and {a}.
  EXPECT_NEAR(rouge_l_score("3.5", "3. 5"), 1, kRougeEpsilon);
  EXPECT_NEAR(rouge_l_score("a. ", "a"), 2 * (0.5 * 1) / 1.5, kRougeEpsilon);
  EXPECT_NEAR(rouge_l_score("a.", "a"), 1, kRougeEpsilon);
}

TEST(RougeL, IsZeroForNothing) {
  EXPECT_EQ(rouge_l_score("", "a"), 0);
  EXPECT_EQ(rouge_l_score("a", ""), 0);
  EXPECT_EQ(rouge_l_score("...", "a"), 0);
  EXPECT_EQ(rouge_l_score("", ""), 0);
  EXPECT_NEAR(rouge_l_score("\xE6\xB9\x96 \xE6\xB0\xB4", "\xE6\xB9\x96"), 2.0 / 3, kRougeEpsilon);
}

TEST(RougeL, GoesOnWhereTheOriginalRecursesTooDeep) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word" + std::to_string(i) + " ";
  EXPECT_NEAR(rouge_l_score(text, text), 1, kRougeEpsilon);
}

double classified(const std::string& prediction, const std::string& truth, const std::vector<std::string>& classes) {
  return classification_score(prediction, truth, classes);
}

TEST(Classification, SharesAmongTheNamedClasses) {
  const std::vector<std::string> classes = {"Individual", "City", "Number of something", "Other number"};
  EXPECT_EQ(classified("Type: City", "City", classes), 1);
  EXPECT_EQ(classified("City or Individual", "City", classes), 0.5);
  EXPECT_EQ(classified("Individual", "City", classes), 0);
  EXPECT_EQ(classified("city", "City", classes), 0);
  EXPECT_EQ(classified("", "City", classes), 0);
  EXPECT_EQ(classified("City", "City", {}), 0);
}

TEST(Classification, PartsOfTheRightNameDoNotCount) {
  EXPECT_EQ(classified("Other number", "Other number", {"number", "Other number"}), 1);
  EXPECT_EQ(classified("Other number", "Other number", {"Other number", "number"}), 1);
  EXPECT_EQ(classified("Other number", "number", {"number", "Other number"}), 0.5);
  // The class after a part is not looked at: "Other" goes, "number" stays, "Other number" shares with it.
  EXPECT_EQ(classified("Other number", "Other number", {"Other", "number", "Other number"}), 0.5);
}

TEST(Retrieval, CountsTheRightNumber) {
  EXPECT_EQ(retrieval_score("Paragraph 7", "Paragraph 7", "Paragraph "), 1);
  EXPECT_EQ(retrieval_score("7", "Paragraph 7", "Paragraph "), 1);
  EXPECT_EQ(retrieval_score("Paragraph 7 or 17", "Paragraph 7", "Paragraph "), 0.5);
  EXPECT_EQ(retrieval_score("Paragraph 07", "Paragraph 7", "Paragraph "), 0);  // compared as text
  EXPECT_EQ(retrieval_score("the seventh", "Paragraph 7", "Paragraph "), 0);
  EXPECT_EQ(retrieval_score("", "Paragraph 7", "Paragraph "), 0);
  EXPECT_EQ(retrieval_score("12", "see Paragraph x, Paragraph 12", "Paragraph "), 1);
  EXPECT_EQ(retrieval_score("\xE6\xAE\xB5\xE8\x90\xBD"
                            "3",
                            "\xE6\xAE\xB5\xE8\x90\xBD"
                            "3",
                            "\xE6\xAE\xB5\xE8\x90\xBD"),
            1);
  EXPECT_EQ(test::error_of([] { retrieval_score("7", "seven", "Paragraph "); }),
            "the reference answer 'seven' names no paragraph, expected 'Paragraph ' and a number");
}

TEST(Count, CountsTheRightNumber) {
  EXPECT_EQ(count_score("17", "17"), 1);
  EXPECT_EQ(count_score("There are 17, not 18, of 20.", "17"), 1.0 / 3);
  EXPECT_EQ(count_score("1.7", "17"), 0);
  EXPECT_EQ(count_score("seventeen", "17"), 0);
  EXPECT_EQ(count_score("", "17"), 0);
}

TEST(CodeSimilarity, TakesTheFirstLineOfCode) {
  EXPECT_EQ(code_similarity_score("return width * height", "return width * height"), 1);
  EXPECT_EQ(code_similarity_score("\n\n```python\n# area\n// area\nreturn x\nreturn y", "return x"), 1);
  EXPECT_EQ(code_similarity_score("# only a comment", "return x"), 0);
  EXPECT_EQ(code_similarity_score("# only a comment", ""), 1);  // two empty texts are equal
  EXPECT_EQ(code_similarity_score("", "return x"), 0);
  EXPECT_EQ(code_similarity_score("x", ""), 0);
  // A line of nothing after the first one is a line: newlines are dropped in front of the text alone.
  EXPECT_EQ(code_similarity_score("# note\n\nreturn x", "return x"), 0);
}

TEST(CodeSimilarity, IsInWholePerCents) {
  // 3 of 4 characters: 2 * 3 / 8.
  EXPECT_EQ(code_similarity_score("abcd", "abxd"), 0.75);
  // ab of abc and ab: 4/5. One of three: 2/6 = .333 -> .33.
  EXPECT_EQ(code_similarity_score("abc", "ab"), 0.8);
  EXPECT_EQ(code_similarity_score("abc", "axy"), 0.33);
  // 2 * 1 / 16 = .125: half goes to the even per cent.
  EXPECT_EQ(code_similarity_score("abcdefgh", "azzzzzzz"), 0.12);
  EXPECT_EQ(code_similarity_score("\xC3\xA9t\xC3\xA9", "\xC3\xA9te"), 0.67);  // characters, not bytes
}

TEST(MatchingRatio, IsRatcliffAndObershelps) {
  EXPECT_DOUBLE_EQ(matching_ratio(U"", U""), 1);
  EXPECT_DOUBLE_EQ(matching_ratio(U"a", U""), 0);
  // difflib's documentation: the order counts.
  EXPECT_DOUBLE_EQ(matching_ratio(U"tide", U"diet"), 0.25);
  EXPECT_DOUBLE_EQ(matching_ratio(U"diet", U"tide"), 0.5);
  // The longest block first: "bcd" alone, though "a" and "e" crosswise would be a longer subsequence without it.
  EXPECT_DOUBLE_EQ(matching_ratio(U"abcd", U"bcde"), 0.75);
}

TEST(MatchingRatio, LongTextsDoNotBeginAtCommonCharacters) {
  // 200 characters of one kind are "popular" in difflib: no match begins there, but where both texts begin.
  EXPECT_DOUBLE_EQ(matching_ratio(U"y" + std::u32string(199, U'a'), std::u32string(200, U'a')), 0);
  EXPECT_DOUBLE_EQ(matching_ratio(U"y" + std::u32string(198, U'a'), std::u32string(199, U'a')), 2.0 * 198 / 398);
  EXPECT_DOUBLE_EQ(matching_ratio(std::u32string(200, U'a'), std::u32string(200, U'a')), 1);
  // From a rare one a match may grow over them.
  EXPECT_DOUBLE_EQ(matching_ratio(U"yx" + std::u32string(200, U'a'), U"x" + std::u32string(200, U'a')),
                   2.0 * 201 / 403);
}

TEST(Unicode, RoundTripsAndClassifies) {
  const std::string text = "a\xC3\xA9\xE6\xB9\x96\xF0\x9F\x98\x80";
  EXPECT_EQ(decode_utf8(text), U"a\u00E9\u6E56\U0001F600");
  EXPECT_EQ(encode_utf8(decode_utf8(text)), text);
  EXPECT_EQ(decode_utf8("\xE6\xB9"), U"\uFFFD\uFFFD");
  EXPECT_TRUE(is_digit(U'\u0663'));  // Arabic three
  EXPECT_FALSE(is_digit(U'\u00B2'));
  EXPECT_FALSE(is_digit(U'/'));
  EXPECT_FALSE(is_digit(U':'));
  EXPECT_FALSE(is_digit(0));
  EXPECT_FALSE(is_space(U'\u200B'));
  EXPECT_EQ(find_numbers(U"a12b3"), (std::vector<std::u32string>{U"12", U"3"}));
  EXPECT_EQ(split_words(U" a\u2003b "), (std::vector<std::u32string>{U"a", U"b"}));
  EXPECT_TRUE(split_words(U"").empty());
}

}  // namespace
}  // namespace tidal
