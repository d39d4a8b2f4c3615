// Progress and tables.
#include <gtest/gtest.h>

#include <limits>

#include "report/progress.h"
#include "report/table.h"

namespace tidal {
namespace {

TEST(Duration, IsWhatAPersonWouldSay) {
  EXPECT_EQ(format_duration(0), "under 1 s");
  EXPECT_EQ(format_duration(0.999), "under 1 s");
  EXPECT_EQ(format_duration(1), "1 s");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(59.6), "1 min");
  EXPECT_EQ(format_duration(80), "1 min 20 s");
  EXPECT_EQ(format_duration(3599.6), "1 h");
  EXPECT_EQ(format_duration(7500), "2 h 5 min");
  EXPECT_EQ(format_duration(86399), "1 d");
  EXPECT_EQ(format_duration(86400 * 3 + 3600 * 4), "3 d 4 h");
  EXPECT_EQ(format_duration(1e300), "years");
  EXPECT_EQ(format_duration(-1), "");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::quiet_NaN()), "");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "");
}

TEST(Progress, EstimatesFromThisRunAlone) {
  // 12 units in 34.2857 s: 28 more take 80 s.
  EXPECT_EQ(progress_text(12, 40, 0, 80.0 / 28 * 12), "12 of 40, 1 min 20 s left");
  // Ten were there before: two units took 10 s, 28 take 140 s.
  EXPECT_EQ(progress_text(12, 40, 10, 10), "12 of 40, 2 min 20 s left");
}

TEST(Progress, SaysNoTimeWhenItKnowsNone) {
  EXPECT_EQ(progress_text(0, 40, 0, 100), "0 of 40");
  EXPECT_EQ(progress_text(10, 40, 10, 100), "10 of 40");
  EXPECT_EQ(progress_text(40, 40, 10, 100), "40 of 40");
  EXPECT_EQ(progress_text(0, 0, 0, 1), "0 of 0");
  Progress progress(4, 1);
  EXPECT_EQ(progress.text(), "1 of 4");
  progress.add(1);
  EXPECT_EQ(progress.done(), 2);
  EXPECT_EQ(progress.text(), "2 of 4, under 1 s left");
  progress.add(2);
  EXPECT_EQ(progress.text(), "4 of 4");
}

TEST(Table, AlignsItsColumns) {
  EXPECT_EQ(markdown_table({{"policy", "K", "KL"}, {"shared", "256", "0.224"}, {"paper", "64", "1.23"}}),
            "| policy |   K |    KL |\n"
            "| ------ | ---:| -----:|\n"
            "| shared | 256 | 0.224 |\n"
            "| paper  |  64 |  1.23 |\n");
}

TEST(Table, CountsCharactersAndEscapes) {
  EXPECT_EQ(markdown_table({{"a", "b"}, {"caf\xC3\xA9", "1|2"}, {"x\ny"}}, 2),
            "| a    | b    |\n"
            "| ---- | ---- |\n"
            "| caf\xC3\xA9 | 1\\|2 |\n"
            "| x y  |      |\n");
}

TEST(Table, OfNothing) {
  EXPECT_EQ(markdown_table({}), "");
  EXPECT_EQ(markdown_table({{"only", "names"}}, 0), "| only | names |\n| ----:| -----:|\n");
}

}  // namespace
}  // namespace tidal
