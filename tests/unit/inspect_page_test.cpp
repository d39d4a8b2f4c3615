#include "report/inspect_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "report/inspect_template.h"
#include "support/error.h"

namespace tidal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Json = nlohmann::json;
using Set = std::vector<int32_t>;
using test::error_of;

/// Three layers, Dense, Select, Sparse, of two heads; a document of 4, a question of 2, an answer of 2.
InspectReport small_report() {
  InspectReport report;
  report.model = "small";
  report.facts = {{"Plan", "one & only"}};
  report.pieces = {"In ", "the ", "begin", "ning\n", "Who", "?", " God", "."};
  report.document = 4;
  report.question = 2;
  report.first_step = 4;
  report.roles = {"Dense", "Select", "Sparse"};
  report.heads = 2;
  report.recent = 1;
  const auto step = [](Set set, float mass) {
    return InspectStep{.mass = {1, 1, 1, 1, mass, mass / 2}, .selected = {{std::move(set)}}, .probability = .25};
  };
  report.steps = {step({0, 4}, .5f), step({0, 2, 5}, .75f), step({1, 2, 6}, 1)};
  return report;
}

/// What stands between the data's tags.
std::string data_text(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open);
  EXPECT_NE(begin, std::string::npos);
  const size_t end = page.find("</script>", begin);
  return page.substr(begin + open.size(), end - begin - open.size());
}

Json data(const InspectReport& report) { return Json::parse(data_text(inspect_page(report))); }

/// The reader's side of the encodings, written from their description in the page's script.
Set decoded_set(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  Set positions;
  int64_t expected = 0, gap = 0;
  int shift = 0;
  for (const char c : text) {
    const auto digit = static_cast<int64_t>(digits.find(c));
    gap += (digit % 32) << shift;
    shift += 5;
    if (digit < 32) {
      positions.push_back(static_cast<int32_t>(expected + gap));
      expected += gap + 1;
      gap = shift = 0;
    }
  }
  return positions;
}

TEST(WholeCharacters, JoinsThePiecesOfOne) {
  const std::vector<std::string> pieces = {"a", "\xE4\xB8", "\x80", "b\xF0", "\x9F", "\x8C\x8A!", "c"};
  EXPECT_THAT(whole_characters(pieces), ElementsAre(TextSpan{"a", 1}, TextSpan{"\xE4\xB8\x80", 2},
                                                    TextSpan{"b\xF0\x9F\x8C\x8A!", 3}, TextSpan{"c", 1}));
}

TEST(WholeCharacters, LeavesOthersAlone) {
  EXPECT_THAT(whole_characters({}), IsEmpty());
  // A lead that nothing goes on with, a continuation of nothing, an empty piece, a character that is whole already.
  const std::vector<std::string> pieces = {"\xE4", "x", "\x80", "", "\xC3\xA9", "\x80", "\xC3"};
  std::vector<TextSpan> expected;
  for (const std::string& piece : pieces) expected.push_back({piece, 1});
  EXPECT_EQ(whole_characters(pieces), expected);
}

TEST(InspectPage, TemplateHasEveryMarkOnceAndInOrder) {
  size_t before = 0;
  for (const std::string_view mark : {"@title@", "@style@", "@data@", "@script@"}) {
    const size_t at = kInspectHtml.find(mark);
    ASSERT_NE(at, std::string_view::npos) << mark;
    EXPECT_EQ(kInspectHtml.find(mark, at + 1), std::string_view::npos) << mark;
    EXPECT_GE(at, before) << mark;
    before = at;
  }
  EXPECT_FALSE(kInspectStyle.empty());
  EXPECT_EQ(kInspectScript.find("</script"), std::string_view::npos);
  EXPECT_EQ(kInspectStyle.find("</style"), std::string_view::npos);
}

TEST(InspectPage, CMakeLeavesTheFilesAsTheyAre) {
  const auto content = [](const std::string& name) {
    std::ifstream file(TIDAL_SOURCE_DIR "/src/report/inspect_page" + name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(kInspectHtml, content(".html"));
  EXPECT_EQ(kInspectStyle, content(".css"));
  EXPECT_EQ(kInspectScript, content(".js") + "\n" + content("_controls.js"));
}

TEST(InspectPage, NeedsNothingFromOutside) {
  const std::string page = inspect_page(small_report());
  for (const char* word : {"http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttpRequest"}) {
    EXPECT_THAT(page, Not(HasSubstr(word)));
  }
}

TEST(InspectPage, HoldsTheReport) {
  const InspectReport report = small_report();
  const Json json = data(report);
  EXPECT_EQ(json["text"]["texts"], Json(report.pieces));
  EXPECT_EQ(json["document"], 4);
  EXPECT_EQ(json["question"], 2);
  EXPECT_EQ(json["first"], 4);
  EXPECT_EQ(json["facts"], Json::parse(R"([["Plan", "one & only"]])"));
  ASSERT_EQ(json["steps"].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(decoded_set(json["steps"][i]["sets"][0][0]), report.steps[i].selected[0][0]);
  }
  // .5 of 4095 is rounded to 2048 = 32 * 64, half of that to 1024 = 16 * 64; 4095 is 63 * 64 + 63.
  EXPECT_EQ(json["steps"][0]["mass"], "________gAQA");
  EXPECT_EQ(json["steps"][0]["p"], .25);
  EXPECT_FALSE(json.contains("exact"));
}

TEST(InspectPage, PositionsSurviveTheirEncoding) {
  InspectReport report = small_report();
  report.pieces.assign(200000, "x");
  report.document = 199990;
  report.question = 8;
  report.first_step = 199998;
  report.steps.resize(2);
  const Set sets[] = {{0, 1, 2, 33, 65, 66, 99, 1123, 1124, 2148, 34915, 34916, 100000, 199998}, {}};
  for (size_t i = 0; i < 2; ++i) report.steps[i].selected = {{sets[i]}};
  const Json json = data(report);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(decoded_set(json["steps"][i]["sets"][0][0]), sets[i]);
}

TEST(InspectPage, MassIsClampedAndNaNCountsAsNone) {
  InspectReport report = small_report();
  report.steps[0].mass = {0, -1, std::numeric_limits<float>::quiet_NaN(), 1.0001f, 1, .5f / 4095};
  report.steps[0].probability = std::numeric_limits<double>::quiet_NaN();
  const Json json = data(report);
  EXPECT_EQ(json["steps"][0]["mass"], "AAAAAA____AB");
  EXPECT_EQ(json["steps"][0]["p"], 0);
}

TEST(InspectPage, ExactModeIsShownWhereItRan) {
  InspectReport report = small_report();
  report.exact = {.tried = 40, .accepted = 31, .rounds = 9, .answer = " God\xFF", .same = false};
  EXPECT_EQ(data(report)["exact"],
            Json({{"tried", 40}, {"accepted", 31}, {"rounds", 9}, {"answer", " God\xEF\xBF\xBD"}, {"same", false}}));
}

TEST(InspectPage, TextCannotBreakOut) {
  const std::string evil = "</script><script>alert(1)</script><!--<script>\"'&\\u003c@script@@data@";
  InspectReport report = small_report();
  report.model = evil;
  report.facts = {{evil, evil}};
  report.pieces[1] = report.pieces[5] = report.end = evil;
  const std::string page = inspect_page(report);
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, Not(HasSubstr("<!--")));
  EXPECT_THAT(page, HasSubstr("<title>&lt;/script>&lt;script>alert(1)"));
  const std::string text = data_text(page);
  EXPECT_EQ(text.find('<'), std::string::npos);
  const Json json = Json::parse(text);
  EXPECT_EQ(json["text"]["texts"][1], evil);
  EXPECT_EQ(json["model"], evil);
  EXPECT_EQ(json["end"], evil);
}

TEST(InspectPage, MergesPiecesAndReplacesWhatIsNoText) {
  InspectReport report = small_report();
  report.model = "m\xFF";
  // A character in two pieces, a byte that is none, and one that is cut where the question begins.
  report.pieces = {"\xE4\xB8", "\x80", "a\xFFz", "\xC3", "\xA9", "?", " God", "."};
  const Json json = data(report);
  EXPECT_EQ(json["text"]["texts"],
            Json({"\xE4\xB8\x80", "a\xEF\xBF\xBDz", "\xEF\xBF\xBD", "\xEF\xBF\xBD", "?", " God", "."}));
  EXPECT_EQ(json["text"]["wide"], Json::parse("[[0, 2]]"));
  EXPECT_EQ(json["model"], "m\xEF\xBF\xBD");
}

TEST(InspectPage, IsTheSameForTheSameReport) { EXPECT_EQ(inspect_page(small_report()), inspect_page(small_report())); }

TEST(InspectPage, StaysSmall) {
  // 8,000 tokens, 84 steps of 2 Select layers with 14 sets of 256 and 24 layers of 14 heads: a set per head, the most
  // that a model of this size asks for.
  InspectReport report = small_report();
  report.pieces.assign(8100, " word");
  report.document = 8000;
  report.question = 20;
  report.first_step = 8000;
  report.roles.assign(24, "Sparse");
  report.roles[2] = report.roles[11] = "Select";
  report.heads = report.units = 14;
  report.steps.clear();
  for (int i = 0; i < 84; ++i) {
    InspectStep step{.mass = std::vector<float>(24 * 14, .5f), .selected = {}};
    for (int layer = 0; layer < 2; ++layer) {
      auto& sets = step.selected.emplace_back(14);
      for (int unit = 0; unit < 14; ++unit) {
        // Spread evenly: gaps of 31, the longest on average.
        for (int k = 0; k < 256; ++k) sets[unit].push_back(k * 31 + (i + unit + layer) % 31);
      }
    }
    report.steps.push_back(std::move(step));
  }
  EXPECT_LT(inspect_page(report).size(), 1.2e6);
}

TEST(InspectPage, RefusesAReportThatContradictsItself) {
  const auto refused = [](const char* words, void (*change)(InspectReport&)) {
    InspectReport report = small_report();
    change(report);
    EXPECT_THAT(error_of([&] { inspect_page(report); }), HasSubstr(words));
  };
  refused("are more than its 8 pieces", [](InspectReport& report) { report.question = 5; });
  refused("3 steps from position 6", [](InspectReport& report) { report.first_step = 6; });
  refused("step 1 has 5 shares of mass", [](InspectReport& report) { report.steps[1].mass.pop_back(); });
  refused("step 0 has selections of 0 layers", [](InspectReport& report) { report.steps[0].selected.clear(); });
  refused("step 2 has 2 sets", [](InspectReport& report) { report.steps[2].selected[0].resize(2); });
  refused("position 5 after 0", [](InspectReport& report) { report.steps[0].selected[0][0] = {0, 5}; });
  refused("position 3 after 3", [](InspectReport& report) { report.steps[1].selected[0][0] = {3, 3}; });
  refused("position -1", [](InspectReport& report) { report.steps[1].selected[0][0] = {-1}; });
}

TEST(InspectPage, TakesEmptyReports) {
  EXPECT_THAT(inspect_page(InspectReport{}), HasSubstr("</html>"));
  InspectReport report = small_report();
  report.steps.clear();
  EXPECT_TRUE(data(report)["steps"].empty());
}

}  // namespace
}  // namespace tidal
