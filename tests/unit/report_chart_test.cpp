// Heat maps, line charts and frontiers: what a reader finds in the picture.
#include <gtest/gtest.h>

#include <limits>

#include "report/colours.h"
#include "report/frontier.h"
#include "report/heat_map.h"
#include "report/line_chart.h"
#include "report_chart_setup.h"
#include "support/error.h"

namespace tidal {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

HeatMapChart needle_chart() {
  HeatMapChart chart;
  chart.title = "Pass keys found, Qwen2.5 0.5B";
  chart.description = "Share of 20 pass keys found by length and depth.";
  chart.row_axis = "depth";
  chart.column_axis = "context";
  chart.value_name = "found, %";
  chart.rows = {"0 %", "50 %", "100 %"};
  chart.columns = {"4K", "16K", "30K"};
  chart.unit = Unit::Percent;
  chart.decimals = 0;
  chart.low = 0;
  chart.high = 1;
  chart.maps = {{"full", {1.0, 1.0, 1.0, 1.0, 0.95, 0.9, 1.0, 1.0, std::nullopt}},
                {"tidal K=64 <shared>", {0.9, 0.95, 0.7, 0.5, 0.25, 0.0, 1.0, kNan, kInfinity}}};
  return chart;
}

TEST(HeatMap, ShowsEveryNumber) {
  for (const bool stacked : {false, true}) {
    HeatMapChart chart = needle_chart();
    chart.stacked = stacked;
    const std::string picture = to_svg(chart);
    test::expect_chart(picture, stacked ? "heat_stacked" : "heat");
    const auto texts = test::texts(picture);
    EXPECT_EQ(test::count(texts, "100"), 7u);
    EXPECT_EQ(test::count(texts, "95"), 2u);
    EXPECT_EQ(test::count(texts, "25"), 1u);
    EXPECT_EQ(test::count(texts, "0"), 1u);
    EXPECT_EQ(test::count(texts, "n/a"), 2u);
    EXPECT_EQ(test::count(texts, "\xE2\x80\x93"), 1u);  // nothing measured
    EXPECT_EQ(test::count(texts, "tidal K=64 &lt;shared&gt;"), 1u);
    EXPECT_EQ(test::count(texts, "16K"), 2u);
    EXPECT_EQ(test::count(texts, "50 %"), 3u);  // a row of either map, and the scale
    EXPECT_EQ(test::count(texts, "context"), 2u);
  }
}

TEST(HeatMap, ColoursGoWithValuesAndTextWithColours) {
  const std::string picture = to_svg(needle_chart());
  const auto fills = test::attributes(picture, "rect", "fill");
  EXPECT_NE(std::count(fills.begin(), fills.end(), hex(scale_colour(0.25))), 0);
  EXPECT_EQ(std::count(fills.begin(), fills.end(), "#ececec"), 3);  // the cells without a number
  for (const test::DrawnText& text : test::texts(picture)) {
    if (text.text == "25") {
      EXPECT_EQ(text.colour, text_colour_on(scale_colour(0.25)));
    }
    if (text.text == "95") {
      EXPECT_EQ(text.colour, text_colour_on(scale_colour(0.95)));
    }
  }
  EXPECT_EQ(text_colour_on(scale_colour(0.25)), "#ffffff");
  EXPECT_EQ(text_colour_on(scale_colour(0.95)), "#000000");
}

TEST(HeatMap, DrawsNothingAndOneValue) {
  HeatMapChart chart;
  test::expect_chart(to_svg(chart), "heat_none");
  chart.maps = {{"nothing", {}}};
  test::expect_chart(to_svg(chart), "heat_no_cells");
  chart.rows = {"a"};
  chart.columns = {"b"};
  chart.maps = {{"one", {3.0}}};
  const std::string one = to_svg(chart);
  test::expect_chart(one, "heat_one");
  EXPECT_EQ(test::count(test::texts(one), "3.00"), 1u);
  chart.maps = {{"huge", {std::numeric_limits<double>::max()}}, {"low", {std::numeric_limits<double>::lowest()}}};
  test::expect_chart(to_svg(chart), "heat_huge");
}

TEST(HeatMap, RefusesAnotherNumberOfValues) {
  HeatMapChart chart = needle_chart();
  chart.maps[1].values.pop_back();
  EXPECT_EQ(test::error_of([&] { to_svg(chart); }),
            "heat map 'tidal K=64 <shared>': 8 values, expected 3 rows times 3 columns");
}

LineChart kl_chart() {
  LineChart chart;
  chart.title = "KL divergence by budget";
  chart.description = "KL divergence of four policies at three budgets.";
  chart.x = {"budget, positions", Scale::Log2, Unit::Count};
  chart.y = {"KL(full || tidal)", Scale::Linear, Unit::Number};
  chart.series = {{"shared, sum", {{64, .684, .05}, {256, .224, .02}, {1024, .046, .004}}},
                  {"paper", {{64, 1.23, .08}, {256, .836, .05}, {1024, .461, .03}}},
                  {"each layer its own", {{64, .101}, {256, .026}, {1024, .003}}}};
  return chart;
}

TEST(LineChart, ShowsSeriesValuesAndErrors) {
  const std::string picture = to_svg(kl_chart());
  test::expect_chart(picture, "line");
  const auto texts = test::texts(picture);
  for (const char* text : {"64", "256", "1K", "0.684", "0.836", "0.003", "shared, sum", "budget, positions"}) {
    EXPECT_EQ(test::count(texts, text), 1u) << text;
  }
  EXPECT_EQ(test::attributes(picture, "polyline", "points").size(), 3u);
  // A bar and two caps for each of six errors, on top of the same chart's other lines.
  LineChart plain = kl_chart();
  for (LineSeries& series : plain.series) {
    for (LinePoint& point : series.points) {
      if (point.error) point.error = 0;
    }
  }
  EXPECT_EQ(test::attributes(picture, "line", "x1").size(),
            test::attributes(to_svg(plain), "line", "x1").size() + 6 * 3);
}

TEST(LineChart, LogarithmicAxisCutsBarsAndCountsWhatHasNoPlace) {
  LineChart chart = kl_chart();
  chart.y.scale = Scale::Log10;
  chart.series[0].points = {{64, .5, .6},    {128, 0.0}, {256, kNan},      {512, .1},
                            {kInfinity, .1}, {0, .1},    {1024, .05, kNan}};
  const std::string picture = to_svg(chart);
  test::expect_chart(picture, "line_log");
  EXPECT_EQ(test::count(test::texts(picture), "4 of 13 points have no place on these axes"), 1u);
  // 64 stands alone, 512 is parted from 1024 by two that have no place: no line in this series.
  EXPECT_EQ(test::attributes(picture, "polyline", "points").size(), 2u);
}

TEST(LineChart, DrawsNothingAndManyPoints) {
  LineChart chart;
  const std::string none = to_svg(chart);
  test::expect_chart(none, "line_none");
  EXPECT_EQ(test::count(test::texts(none), "no values"), 1u);
  chart.series = {{"", {}}, {"NaN", {{kNan, kNan, kNan}}}};
  test::expect_chart(to_svg(chart), "line_nan");
  chart.series = {{"one", {{1, 1, kInfinity}}}};
  test::expect_chart(to_svg(chart), "line_one");
  chart.series.clear();
  for (int s = 0; s < 9; ++s) {
    chart.series.push_back({"series " + std::to_string(s), {}});
    for (int i = 0; i < 24; ++i) chart.series.back().points.push_back({double(i), 0.37 + i * 0.1 + s});
  }
  const std::string many = to_svg(chart);
  test::expect_chart(many, "line_many");
  EXPECT_EQ(test::count(test::texts(many), "0.37"), 0u);  // too many to print
  EXPECT_EQ(test::attributes(many, "polyline", "stroke-dasharray").size(), 2u);
}

std::vector<size_t> frontier(const std::vector<CostLoss>& points) { return pareto_frontier(points); }

TEST(Frontier, KeepsWhatNothingBeats) {
  EXPECT_EQ(frontier({}), std::vector<size_t>{});
  EXPECT_EQ(frontier({{1, 1}}), std::vector<size_t>{0});
  EXPECT_EQ(frontier({{3, 1}, {1, 3}, {2, 2}, {2.5, 2.5}}), (std::vector<size_t>{1, 2, 0}));
}

TEST(Frontier, TiesAndDuplicates) {
  EXPECT_EQ(frontier({{1, 2}, {1, 1}}), std::vector<size_t>{1});          // same cost: less loss
  EXPECT_EQ(frontier({{2, 1}, {1, 1}}), std::vector<size_t>{1});          // same loss: less cost
  EXPECT_EQ(frontier({{1, 1}, {1, 1}, {1, 1}}), std::vector<size_t>{0});  // equal: the first
  EXPECT_EQ(frontier({{2, 0}, {1, 1}, {2, 0}}), (std::vector<size_t>{1, 0}));
  EXPECT_EQ(frontier({{0.0, 1}, {-0.0, 1}}), std::vector<size_t>{0});
}

TEST(Frontier, LeavesOutWhatIsNoNumber) {
  EXPECT_EQ(frontier({{kNan, 0}, {0, kNan}, {-kInfinity, 0}, {0, -kInfinity}, {5, 5}}), std::vector<size_t>{4});
  EXPECT_EQ(frontier({{1, kInfinity}}), std::vector<size_t>{});
}

TEST(Frontier, AgreesWithTheDefinitionOnAGrid) {
  // Small integers: many ties and duplicates.
  std::vector<CostLoss> points;
  unsigned state = 12345;
  for (int i = 0; i < 60; ++i) {
    state = state * 1664525 + 1013904223;
    points.push_back({double(state >> 16 & 7), double(state >> 24 & 7)});
  }
  std::vector<size_t> expected;
  for (size_t i = 0; i < points.size(); ++i) {
    bool beaten = false;
    for (size_t j = 0; j < points.size(); ++j) {
      const bool no_worse = points[j].cost <= points[i].cost && points[j].loss <= points[i].loss;
      const bool equal = points[j].cost == points[i].cost && points[j].loss == points[i].loss;
      beaten = beaten || (no_worse && (!equal || j < i));
    }
    if (!beaten) expected.push_back(i);
  }
  auto found = frontier(points);
  for (size_t i = 1; i < found.size(); ++i) EXPECT_LT(points[found[i - 1]].cost, points[found[i]].cost);
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found, expected);
}

FrontierChart plans_chart() {
  FrontierChart chart;
  chart.title = "Plans of Qwen2.5 0.5B at K = 256";
  chart.description = "KL divergence and bytes read per token of calibrated plans.";
  for (int i = 0; i < 14; ++i) {
    chart.points.push_back({"2, " + std::to_string(5 + i), 12.5e6, 0.22 + 0.015 * ((i * 5) % 14), false});
  }
  for (int i = 0; i < 5; ++i) {
    chart.points.push_back({"2, 9, " + std::to_string(12 + i), 14e6 + 0.05e6 * i, 0.15 + 0.01 * ((i * 3) % 5), i == 0});
  }
  chart.points.push_back({"2, 6, 9, 13, 18", 17.2e6, 0.08, false});
  chart.points.push_back({"2, 6, 9, 13, 19", 17.2e6, 0.081, false});
  return chart;
}

TEST(Frontier, ChartMarksItsPoints) {
  const std::string picture = to_svg(plans_chart());
  test::expect_chart(picture, "frontier");
  const auto lines = test::attributes(picture, "polyline", "points");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(std::count(lines[0].begin(), lines[0].end(), ','), 3);  // the best at 12.5, 14 and 17.2 MB
  const auto fills = test::attributes(picture, "circle", "fill");
  EXPECT_EQ(std::count(fills.begin(), fills.end(), "#0072b2"), 3 + 1);  // and one in the legend
  EXPECT_EQ(std::count(fills.begin(), fills.end(), "#9a9a9a"), 18 + 1);
  EXPECT_EQ(std::count(fills.begin(), fills.end(), "none"), 1 + 1);
  const auto texts = test::texts(picture);
  for (const FrontierPoint& point : plans_chart().points) EXPECT_EQ(test::count(texts, point.label), 1u) << point.label;
}

TEST(Frontier, ChartTellsKindsByTheirMarkers) {
  FrontierChart chart = plans_chart();
  const auto shapes = [&](const char* name) { return test::attributes(to_svg(chart), name, "fill").size(); };
  const size_t circles = shapes("circle"), others = shapes("polygon");
  chart.kinds = {"tidal", "sketch"};
  EXPECT_EQ(shapes("circle"), circles + 1);  // the legend's
  EXPECT_EQ(shapes("polygon"), others + 1);
  for (size_t i = 0; i < 5; ++i) chart.points[i].kind = 1;
  EXPECT_EQ(shapes("circle"), circles + 1 - 5);
  EXPECT_EQ(shapes("polygon"), others + 1 + 5);
  const auto texts = test::texts(to_svg(chart));
  EXPECT_EQ(test::count(texts, "tidal"), 1u);
  EXPECT_EQ(test::count(texts, "sketch"), 1u);
  test::expect_chart(to_svg(chart), "frontier_kinds");
}

TEST(Frontier, ChartLabelsKeepOffEachOther) {
  std::vector<test::DrawnText> labels;
  for (const test::DrawnText& text : test::texts(to_svg(plans_chart()))) {
    if (text.text.rfind("2, ", 0) == 0) labels.push_back(text);
  }
  ASSERT_EQ(labels.size(), 21u);
  for (size_t i = 0; i < labels.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const auto &a = labels[i], &b = labels[j];
      const bool apart = std::abs(a.y - b.y) >= a.size * 0.8 || a.x + svg::text_width(a.text, a.size) <= b.x ||
                         b.x + svg::text_width(b.text, b.size) <= a.x;
      EXPECT_TRUE(apart) << a.text << " and " << b.text;
    }
  }
}

TEST(Frontier, ChartOfNothingAndOfMany) {
  FrontierChart chart;
  test::expect_chart(to_svg(chart), "frontier_none");
  chart.points = {{"NaN", kNan, 1, true}, {"inf", 1, kInfinity, false}};
  const std::string none = to_svg(chart);
  test::expect_chart(none, "frontier_nan");
  EXPECT_EQ(test::count(test::texts(none), "no values"), 1u);
  EXPECT_EQ(test::count(test::texts(none), "2 of 2 points have no place on these axes"), 1u);
  for (int i = 0; i < 200; ++i)
    chart.points.push_back({"plan " + std::to_string(i), 1e6 + i * 1e4, 1.0 + i % 17, i == 50});
  const std::string many = to_svg(chart);
  test::expect_chart(many, "frontier_many");
  EXPECT_EQ(test::count(test::texts(many), "plan 0"), 1u);
  EXPECT_EQ(test::count(test::texts(many), "plan 50"), 1u);  // chosen
  EXPECT_EQ(test::count(test::texts(many), "plan 51"), 0u);
}

}  // namespace
}  // namespace tidal
