// The SVG writer, colours and axes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "report/axis.h"
#include "report/colours.h"
#include "report/svg.h"
#include "report_chart_setup.h"

namespace tidal {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Svg, EscapesWhatXmlReserves) {
  EXPECT_EQ(svg::escape(R"(a<b>&"c'd)"), "a&lt;b&gt;&amp;&quot;c&#39;d");
  EXPECT_EQ(svg::escape("caf\xC3\xA9 \xE4\xB8\xAD \xF0\x9F\x98\x80"), "caf\xC3\xA9 \xE4\xB8\xAD \xF0\x9F\x98\x80");
  EXPECT_EQ(svg::escape(""), "");
}

TEST(Svg, ReplacesWhatXmlCannotHold) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(svg::escape("a\x01"
                        "b"),
            "a" + bad + "b");
  EXPECT_EQ(svg::escape(std::string("\0", 1)), bad);
  EXPECT_EQ(svg::escape("\xC3"), bad);                      // cut
  EXPECT_EQ(svg::escape("\xC3("), bad + "(");               // continuation that is none
  EXPECT_EQ(svg::escape("\xED\xA0\x80"), bad + bad + bad);  // surrogate
  EXPECT_EQ(svg::escape("\xC0\x80"), bad + bad);            // too long a form
  EXPECT_EQ(svg::escape("\xEF\xBF\xBF"), bad);              // U+FFFF
  EXPECT_EQ(svg::escape("a\tb\nc"), "a\tb\nc");
}

TEST(Svg, LeavesOutWhatHasNoPlace) {
  svg::Picture picture;
  picture.rectangle(kNan, 0, 1, 1, "#000000");
  picture.line(0, kInfinity, 1, 1, {"#000000", 1, ""});
  picture.marker(svg::Marker::Diamond, 0, -kInfinity, 4, "#000000", "none");
  picture.text(kNan, 0, "text", {});
  picture.polyline({{0, 0}, {kNan, 1}}, {"#000000", 1, ""});
  const std::string empty = svg::Picture().document(10, 10, "t", "d");
  EXPECT_EQ(picture.document(10, 10, "t", "d"), empty);
  test::expect_chart(empty, "empty");
}

TEST(Svg, WritesShortNumbers) {
  svg::Picture picture;
  picture.line(-0.04, 1.0, 2.25, 1e6, {"#000000", 1, ""});
  EXPECT_NE(picture.document(1, 1, "", "").find(R"(x1="0" y1="1" x2="2.3" y2="1000000")"), std::string::npos);
}

TEST(Svg, TitleCannotBreakOut) {
  test::expect_chart(svg::Picture().document(1, 1, "</title><script>", "a & b"), "escape");
  EXPECT_EQ(test::xml_fault("<svg><title>a & b</title></svg>"), "a bare &");
  EXPECT_NE(test::xml_fault("<svg><g></svg>"), "");
}

TEST(Colours, TextIsReadableOnTheWholeScale) {
  double before = -1;
  for (int i = 0; i <= 1000; ++i) {
    const Rgb colour = scale_colour(i / 1000.0);
    const double light = luminance(colour) + 0.05;
    const double contrast = text_colour_on(colour) == "#000000" ? light / 0.05 : 1.05 / light;
    EXPECT_GE(contrast, 4.5) << hex(colour);
    // Sequential: also without colours, more is lighter. Rounding to 8 bits may hide a step, not turn it round by more
    // than a step of all three channels, 3/255 of the linear range at most.
    EXPECT_GE(luminance(colour), before - 3.0 / 255) << i;
    before = luminance(colour);
  }
  EXPECT_EQ(hex(scale_colour(0)), "#440154");
  EXPECT_EQ(hex(scale_colour(1)), "#fde725");
  EXPECT_EQ(hex(scale_colour(7)), "#fde725");
  EXPECT_EQ(hex(scale_colour(-kInfinity)), "#440154");
  EXPECT_EQ(hex(scale_colour(kNan)), "#440154");
}

TEST(Axis, FormatsValues) {
  EXPECT_EQ(format_value(0, Unit::Number), "0");
  EXPECT_EQ(format_value(0.224, Unit::Number), "0.224");
  EXPECT_EQ(format_value(1.5, Unit::Number), "1.5");
  EXPECT_EQ(format_value(-12, Unit::Number), "-12");
  EXPECT_EQ(format_value(0.00002, Unit::Number), "2.00e-05");
  EXPECT_EQ(format_value(kNan, Unit::Number), "n/a");
  EXPECT_EQ(format_value(64, Unit::Count), "64");
  EXPECT_EQ(format_value(1000, Unit::Count), "1000");
  EXPECT_EQ(format_value(1024, Unit::Count), "1K");
  EXPECT_EQ(format_value(4096, Unit::Count), "4K");
  EXPECT_EQ(format_value(1536, Unit::Count), "1536");
  EXPECT_EQ(format_value(1048576, Unit::Count), "1M");
  EXPECT_EQ(format_value(999, Unit::Bytes), "999 B");
  EXPECT_EQ(format_value(999.9, Unit::Bytes), "1 kB");
  EXPECT_EQ(format_value(1.5e6, Unit::Bytes), "1.5 MB");
  EXPECT_EQ(format_value(0.5, Unit::Percent), "50 %");
}

std::vector<std::string> labels(const AxisMap& map) {
  std::vector<std::string> all;
  for (const AxisMap::Tick& tick : map.ticks()) all.push_back(tick.label);
  return all;
}

TEST(Axis, LinearBeginsAtZero) {
  const std::vector<double> values = {3, 9, kNan, kInfinity};
  const AxisMap map({"", Scale::Linear, Unit::Number}, values, 100, 200);
  EXPECT_EQ(labels(map), (std::vector<std::string>{"0", "2", "4", "6", "8", "10"}));
  EXPECT_DOUBLE_EQ(map(0), 100);
  EXPECT_DOUBLE_EQ(map(5), 150);
  EXPECT_DOUBLE_EQ(map(10), 200);
  EXPECT_TRUE(std::isnan(map(kNan)));
  EXPECT_TRUE(std::isnan(map(kInfinity)));
}

TEST(Axis, LinearGoesBelowZeroForNegativeValues) {
  const std::vector<double> values = {-1, 1};
  const AxisMap map({"", Scale::Linear, Unit::Number}, values, 0, 100);
  EXPECT_DOUBLE_EQ(map(0), 50);
  const auto all = labels(map);
  EXPECT_EQ(std::count(all.begin(), all.end(), "0"), 1);
}

TEST(Axis, SpanHasRoomAroundTheValuesAlone) {
  const std::vector<double> values = {12.5e6, 17.2e6};
  const AxisMap map({"", Scale::Span, Unit::Bytes}, values, 0, 100);
  EXPECT_EQ(labels(map).front(), "12 MB");
  EXPECT_GT(map(12.5e6), 0);
  EXPECT_LT(map(12.5e6), 15);
  EXPECT_GT(map(17.2e6), 85);
  EXPECT_LT(map(17.2e6), 100);
}

TEST(Axis, PowersOfTwoAreEvenlySpaced) {
  const std::vector<double> values = {64, 256, 1024, 4096};
  const AxisMap map({"", Scale::Log2, Unit::Count}, values, 0, 700);
  EXPECT_EQ(labels(map), (std::vector<std::string>{"64", "128", "256", "512", "1K", "2K", "4K"}));
  EXPECT_NEAR(map(128) - map(64), map(4096) - map(2048), 1e-9);
  EXPECT_GT(map(64), 0);
  EXPECT_LT(map(4096), 700);
  EXPECT_TRUE(std::isnan(map(0)));
  EXPECT_TRUE(std::isnan(map(-1)));
}

TEST(Axis, DecadesHaveTicksInside) {
  const std::vector<double> values = {0.014, 0.684, 0, -1};
  const AxisMap map({"", Scale::Log10, Unit::Number}, values, 0, 100);
  const auto all = labels(map);
  for (const char* label : {"0.02", "0.05", "0.1", "0.2", "0.5"}) {
    EXPECT_EQ(std::count(all.begin(), all.end(), label), 1) << label;
  }
}

TEST(Axis, HoldsNoneOneAndExtremeValues) {
  for (const Scale scale : {Scale::Linear, Scale::Span, Scale::Log2, Scale::Log10}) {
    for (const std::vector<double>& values : std::vector<std::vector<double>>{{},
                                                                              {kNan},
                                                                              {0},
                                                                              {5},
                                                                              {5, 5},
                                                                              {-3},
                                                                              {1e-300},
                                                                              {1e300},
                                                                              {5e-324},
                                                                              {1.7e308, -1.7e308},
                                                                              {1e-298, 1e298},
                                                                              {1e6, 1e6 + 1}}) {
      const AxisMap map({"", scale, Unit::Number}, values, 0, 100);
      EXPECT_LE(map.ticks().size(), 32u);
      for (const AxisMap::Tick& tick : map.ticks()) EXPECT_TRUE(std::isfinite(tick.pixel)) << tick.label;
      for (const double value : values) {
        // Beyond the range that is drawn only values that no chart has.
        if (drawable(value, scale) && std::abs(value) < 1e299 && std::abs(value) > 1e-299) {
          EXPECT_GE(map(value), 0) << value;
          EXPECT_LE(map(value), 100) << value;
        }
      }
    }
  }
}

TEST(Labels, KeepOffEachOther) {
  const PlotArea area = {0, 0, 400, 300};
  LabelPlacer placer(area);
  std::vector<LabelPlacer::Place> places;
  // Six points in one place, and one in a corner.
  for (int i = 0; i < 6; ++i) placer.block(200, 150, 5);
  for (int i = 0; i < 6; ++i) places.push_back(placer.place(200, 150, "a label", 10));
  places.push_back(placer.place(400, 0, "a label", 10));
  const double width = svg::text_width("a label", 10);
  for (size_t i = 0; i < places.size(); ++i) {
    EXPECT_GE(places[i].x, area.left);
    EXPECT_LE(places[i].x + width, area.right + 1e-9);
    EXPECT_GE(places[i].y, area.top);
    for (size_t j = 0; j < i; ++j) {
      const bool apart = std::abs(places[i].x - places[j].x) >= width || std::abs(places[i].y - places[j].y) >= 10;
      EXPECT_TRUE(apart) << i << " and " << j;
    }
  }
}

}  // namespace
}  // namespace tidal
