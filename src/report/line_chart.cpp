#include "report/line_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/colours.h"

namespace tidal {
namespace {

constexpr size_t kMostLabels = 40;
constexpr PlotArea kArea = {86, 64, 686, 404};
constexpr double kHeight = 470;
constexpr double kLabelSize = 10;
constexpr svg::Marker kMarkers[] = {svg::Marker::Circle, svg::Marker::Square, svg::Marker::Diamond,
                                    svg::Marker::Triangle};

struct Style {
  std::string colour;
  svg::Marker marker;
  std::string dashes;
};

// Markers tell the series apart without colours; when the colours repeat, so do dashes.
Style style_of(size_t i) {
  return {series_colour(i), kMarkers[i % std::size(kMarkers)], i >= kSeriesColours ? "6 4" : ""};
}

bool drawable(const LineChart& chart, const LinePoint& point) {
  return drawable(point.x, chart.x.scale) && drawable(point.y, chart.y.scale);
}

bool has_error(const LinePoint& point) { return point.error && std::isfinite(*point.error) && *point.error > 0; }

class LinePainter {
 public:
  explicit LinePainter(const LineChart& chart)
      : chart_(chart),
        x_(chart.x, values(true), kArea.left, kArea.right),
        y_(chart.y, values(false), kArea.bottom, kArea.top),
        placer_(kArea) {}

  std::string paint() {
    picture_.text(20, 34, chart_.title, {.size = 16, .bold = true});
    draw_axes(picture_, kArea, x_, y_, chart_.x, chart_.y);
    size_t drawn = 0, left_out = 0;
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      for (const LinePoint& point : chart_.series[i].points) ++(drawable(chart_, point) ? drawn : left_out);
      lines(chart_.series[i], style_of(i));
    }
    for (size_t i = 0; i < chart_.series.size(); ++i) markers(chart_.series[i], style_of(i));
    if (drawn <= kMostLabels) labels();
    if (drawn == 0) {
      picture_.text((kArea.left + kArea.right) / 2, (kArea.top + kArea.bottom) / 2, "no values",
                    {.size = 14, .anchor = svg::Anchor::Middle, .colour = "#666666"});
    }
    if (left_out > 0) {
      picture_.text(kArea.left, kHeight - 8,
                    fmt::format("{} of {} points have no place on these axes", left_out, drawn + left_out),
                    {.size = 11, .colour = "#666666"});
    }
    const double width = std::max(legend(), 40 + svg::text_width(chart_.title, 16));
    return picture_.document(width, kHeight, chart_.title, chart_.description);
  }

 private:
  std::vector<double> values(bool of_x) const {
    std::vector<double> all;
    for (const LineSeries& series : chart_.series) {
      for (const LinePoint& point : series.points) {
        if (!drawable(chart_, point)) continue;
        all.push_back(of_x ? point.x : point.y);
        if (of_x || !has_error(point)) continue;
        all.push_back(point.y + *point.error);
        // On a logarithmic axis a bar that reaches down to nothing would only squeeze the rest.
        if (drawable(-1, chart_.y.scale)) all.push_back(point.y - *point.error);
      }
    }
    return all;
  }

  void lines(const LineSeries& series, const Style& style) {
    svg::Points run;
    const auto draw = [&] {
      picture_.polyline(run, {style.colour, 2, style.dashes});
      for (size_t i = 1; i < run.size(); ++i) {
        placer_.block_line(run[i - 1].first, run[i - 1].second, run[i].first, run[i].second);
      }
      run.clear();
    };
    for (const LinePoint& point : series.points) {
      if (drawable(chart_, point)) {
        run.emplace_back(x_(point.x), y_(point.y));
      } else {
        draw();
      }
    }
    draw();
  }

  void markers(const LineSeries& series, const Style& style) {
    for (const LinePoint& point : series.points) {
      if (!drawable(chart_, point)) continue;
      const double x = x_(point.x), y = y_(point.y);
      if (has_error(point)) error_bar(point, style);
      picture_.marker(style.marker, x, y, 4, style.colour, "#ffffff");
      placer_.block(x, y, 5);
    }
  }

  void error_bar(const LinePoint& point, const Style& style) {
    const svg::Stroke stroke = {style.colour, 1.2, ""};
    const double x = x_(point.x), high = y_(point.y + *point.error);
    const double lower = y_(point.y - *point.error);
    // NaN: the bar leaves a logarithmic axis; cut at the axis, without a cap.
    const double low = std::isnan(lower) ? kArea.bottom : std::min(lower, kArea.bottom);
    picture_.line(x, low, x, high, stroke);
    picture_.line(x - 4, high, x + 4, high, stroke);
    if (low == lower) picture_.line(x - 4, low, x + 4, low, stroke);
    placer_.block_line(x, low, x, high);
  }

  void labels() {
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      for (const LinePoint& point : chart_.series[i].points) {
        if (!drawable(chart_, point)) continue;
        const std::string text = format_value(point.y, chart_.y.unit);
        const auto place = placer_.place(x_(point.x), y_(point.y), text, kLabelSize);
        picture_.text(place.x, place.y, text, {.size = kLabelSize, .colour = style_of(i).colour, .halo = true});
      }
    }
  }

  // Right of the chart; returns where it ends.
  double legend() {
    double y = kArea.top + 8, right = kArea.right + 20;
    for (size_t i = 0; i < chart_.series.size(); ++i) {
      const Style style = style_of(i);
      const double x = kArea.right + 20;
      picture_.line(x, y, x + 24, y, {style.colour, 2, style.dashes});
      picture_.marker(style.marker, x + 12, y, 4, style.colour, "#ffffff");
      picture_.text(x + 30, y + 4, chart_.series[i].name, {.size = 12});
      right = std::max(right, x + 30 + svg::text_width(chart_.series[i].name, 12));
      y += 20;
    }
    return right + 16;
  }

  const LineChart& chart_;
  AxisMap x_, y_;
  LabelPlacer placer_;
  svg::Picture picture_;
};

}  // namespace

std::string to_svg(const LineChart& chart) { return LinePainter(chart).paint(); }

}  // namespace tidal
