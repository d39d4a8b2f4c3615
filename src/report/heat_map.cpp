#include "report/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "report/colours.h"

namespace tidal {
namespace {

constexpr double kTextSize = 12;
constexpr double kRowHeight = 30;
constexpr double kMargin = 20;
constexpr double kScaleWidth = 14;
constexpr double kScaleHeight = 130;
const char* const kEmptyFill = "#ececec";

struct Range {
  double low = 0, high = 1;
  double share(double value) const {
    // Halves, so that the difference of two huge values is a number.
    return high > low ? (value / 2 - low / 2) / (high / 2 - low / 2) : 0.5;
  }
};

Range range_of(const HeatMapChart& chart) {
  Range range = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  for (const HeatMap& map : chart.maps) {
    for (const std::optional<double>& value : map.values) {
      if (!value || !std::isfinite(*value)) continue;
      range.low = std::min(range.low, *value);
      range.high = std::max(range.high, *value);
    }
  }
  if (range.low > range.high) range = {};
  if (chart.low && std::isfinite(*chart.low)) range.low = *chart.low;
  if (chart.high && std::isfinite(*chart.high)) range.high = *chart.high;
  return range;
}

std::string cell_text(const HeatMapChart& chart, const std::optional<double>& value) {
  if (!value) return "\xE2\x80\x93";
  if (!std::isfinite(*value)) return "n/a";
  const double number = chart.unit == Unit::Percent ? *value * 100 : *value;
  if (std::abs(number) >= 1e9) return fmt::format("{:.1e}", number);
  return fmt::format("{:.{}f}", number, std::clamp(chart.decimals, 0, 9));
}

double widest(const std::vector<std::string>& texts) {
  double width = 0;
  for (const std::string& text : texts) width = std::max(width, svg::text_width(text, kTextSize));
  return width;
}

// Where the cells of a map are, relative to the map's corner.
struct Layout {
  double left = 0, top = 0;  // of the first cell
  double cell = 0;           // width
  double width = 0, height = 0;

  explicit Layout(const HeatMapChart& chart) {
    cell = std::max(widest(chart.columns) + 10, 44.0);
    double title = 0;
    for (const HeatMap& map : chart.maps) {
      title = std::max(title, svg::text_width(map.title, 13));
      for (const auto& value : map.values) {
        cell = std::max(cell, svg::text_width(cell_text(chart, value), kTextSize) + 10);
      }
    }
    left = widest(chart.rows) + 32;
    top = 26;
    width = left + std::max(cell * static_cast<double>(chart.columns.size()), title);
    height = top + kRowHeight * static_cast<double>(chart.rows.size()) + 44;
  }
};

void draw_map(svg::Picture& picture, const HeatMapChart& chart, const HeatMap& map, const Layout& layout,
              const Range& range, double x, double y) {
  const double left = x + layout.left, top = y + layout.top;
  const double width = layout.cell * static_cast<double>(chart.columns.size());
  const double height = kRowHeight * static_cast<double>(chart.rows.size());
  picture.text(left, top - 9, map.title, {.size = 13, .bold = true});
  for (size_t row = 0; row < chart.rows.size(); ++row) {
    const double cell_top = top + kRowHeight * static_cast<double>(row), baseline = cell_top + kRowHeight / 2 + 4;
    picture.text(left - 7, baseline, chart.rows[row], {.size = kTextSize, .anchor = svg::Anchor::End});
    for (size_t column = 0; column < chart.columns.size(); ++column) {
      const std::optional<double>& value = map.values[row * chart.columns.size() + column];
      const bool known = value && std::isfinite(*value);
      const Rgb colour = known ? scale_colour(range.share(*value)) : Rgb{};
      const double cell_left = left + layout.cell * static_cast<double>(column);
      picture.rectangle(cell_left, cell_top, layout.cell, kRowHeight, known ? hex(colour) : kEmptyFill, "#ffffff");
      picture.text(
          cell_left + layout.cell / 2, baseline, cell_text(chart, value),
          {.size = kTextSize, .anchor = svg::Anchor::Middle, .colour = known ? text_colour_on(colour) : "#666666"});
    }
  }
  for (size_t column = 0; column < chart.columns.size(); ++column) {
    picture.text(left + layout.cell * (static_cast<double>(column) + 0.5), top + height + 16, chart.columns[column],
                 {.size = kTextSize, .anchor = svg::Anchor::Middle});
  }
  picture.text(left + width / 2, top + height + 36, chart.column_axis, {.anchor = svg::Anchor::Middle});
  picture.text(x + 12, top + height / 2, chart.row_axis, {.anchor = svg::Anchor::Middle, .upright = true});
}

void draw_scale(svg::Picture& picture, const HeatMapChart& chart, const Range& range, double x, double y) {
  constexpr int kSteps = 65;
  const double step = kScaleHeight / kSteps;
  for (int i = 0; i < kSteps; ++i) {
    // A little higher than its step: no hairlines of white between them.
    picture.rectangle(x, y + step * i, kScaleWidth, step + (i + 1 < kSteps ? 0.5 : 0),
                      hex(scale_colour(1 - (i + 0.5) / kSteps)));
  }
  for (const double share : {0.0, 0.5, 1.0}) {
    const double value = range.low * (1 - share) + range.high * share;
    picture.text(x + kScaleWidth + 6, y + kScaleHeight * (1 - share) + 4, format_value(value, chart.unit),
                 {.size = 11});
  }
  picture.text(x, y - 9, chart.value_name, {.size = 11});
}

}  // namespace

std::string to_svg(const HeatMapChart& chart) {
  const size_t cells = chart.rows.size() * chart.columns.size();
  for (const HeatMap& map : chart.maps) {
    if (map.values.size() != cells) {
      fail("heat map '{}': {} values, expected {} rows times {} columns", map.title, map.values.size(),
           chart.rows.size(), chart.columns.size());
    }
  }
  const Layout layout(chart);
  const Range range = range_of(chart);
  svg::Picture picture;
  const double first = kMargin + (chart.title.empty() ? 0 : 30);
  picture.text(kMargin, kMargin + 14, chart.title, {.size = 16, .bold = true});
  double x = kMargin, y = first;
  for (const HeatMap& map : chart.maps) {
    draw_map(picture, chart, map, layout, range, x, y);
    (chart.stacked ? y : x) += (chart.stacked ? layout.height : layout.width) + 16;
  }
  const double scale_x = chart.stacked || chart.maps.empty() ? kMargin + layout.width + 16 : x;
  const double bottom = chart.stacked ? y : first + layout.height;
  draw_scale(picture, chart, range, scale_x, first + layout.top);
  const double width = std::max(scale_x + kScaleWidth + std::max(60.0, svg::text_width(chart.value_name, 11)) + kMargin,
                                kMargin * 2 + svg::text_width(chart.title, 16));
  const double height = std::max(bottom, first + layout.top + kScaleHeight + kMargin);
  return picture.document(width, height, chart.title, chart.description);
}

}  // namespace tidal
