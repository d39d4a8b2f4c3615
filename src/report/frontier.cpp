#include "report/frontier.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>
#include <tuple>

namespace tidal {
namespace {

constexpr size_t kMostLabels = 30;
constexpr PlotArea kArea = {86, 64, 786, 464};
constexpr double kHeight = 550;
constexpr double kLabelSize = 11;
const char* const kOn = "#0072b2";
const char* const kOff = "#9a9a9a";
const char* const kChosen = "#d55e00";

std::vector<double> values(const std::vector<FrontierPoint>& points, double FrontierPoint::*field) {
  std::vector<double> all;
  for (const FrontierPoint& point : points) all.push_back(point.*field);
  return all;
}

void draw_label(svg::Picture& picture, LabelPlacer& placer, double x, double y, const FrontierPoint& point, bool on) {
  const auto place = placer.place(x, y, point.label, kLabelSize);
  if (place.away) {
    const double right = place.x + svg::text_width(point.label, kLabelSize);
    picture.line(x, y, std::clamp(x, place.x, right), std::clamp(y, place.y - kLabelSize, place.y + 2),
                 {"#bbbbbb", 0.8, ""});
  }
  picture.text(place.x, place.y, point.label,
               {.size = kLabelSize, .colour = on ? "#222222" : "#666666", .bold = point.chosen, .halo = true});
}

svg::Marker shape(size_t kind) {
  constexpr svg::Marker kShapes[] = {svg::Marker::Circle, svg::Marker::Diamond, svg::Marker::Square,
                                     svg::Marker::Triangle};
  return kShapes[kind % std::size(kShapes)];
}

double draw_legend(svg::Picture& picture, bool chosen, const std::vector<std::string>& kinds) {
  const double x = kArea.right + 20, y = kArea.top + 8;
  const auto entry = [&](double at, std::string_view name) { picture.text(x + 30, at + 4, name, {}); };
  picture.line(x, y, x + 24, y, {kOn, 2, ""});
  picture.marker(svg::Marker::Circle, x + 12, y, 5, kOn, "#ffffff");
  entry(y, "Pareto frontier");
  picture.marker(svg::Marker::Circle, x + 12, y + 20, 4, kOff, "#ffffff");
  entry(y + 20, "beaten by others");
  double below = y + 40;
  if (chosen) {
    picture.marker(svg::Marker::Circle, x + 12, below, 8, "none", kChosen);
    entry(below, "chosen");
    below += 20;
  }
  double width = svg::text_width("beaten by others", 12);
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    picture.marker(shape(kind), x + 12, below, 5, "#ffffff", "#222222");
    entry(below, kinds[kind]);
    width = std::max(width, svg::text_width(kinds[kind], 12));
    below += 20;
  }
  return x + 30 + width + 16;
}

}  // namespace

std::vector<size_t> pareto_frontier(std::span<const CostLoss> points) {
  std::vector<size_t> order;
  for (size_t i = 0; i < points.size(); ++i) {
    if (std::isfinite(points[i].cost) && std::isfinite(points[i].loss)) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tie(points[a].cost, points[a].loss, a) < std::tie(points[b].cost, points[b].loss, b);
  });
  std::vector<size_t> frontier;
  double best = std::numeric_limits<double>::infinity();
  for (const size_t i : order) {
    if (points[i].loss >= best) continue;
    best = points[i].loss;
    frontier.push_back(i);
  }
  return frontier;
}

std::string to_svg(const FrontierChart& chart) {
  // Points that are not drawn are not on the frontier that is drawn either.
  std::vector<FrontierPoint> drawn;
  std::vector<CostLoss> measured;
  for (const FrontierPoint& point : chart.points) {
    if (!drawable(point.cost, chart.cost.scale) || !drawable(point.loss, chart.loss.scale)) continue;
    drawn.push_back(point);
    measured.push_back({point.cost, point.loss});
  }
  const AxisMap x(chart.cost, values(drawn, &FrontierPoint::cost), kArea.left, kArea.right);
  const AxisMap y(chart.loss, values(drawn, &FrontierPoint::loss), kArea.bottom, kArea.top);
  std::vector<bool> on(drawn.size());
  svg::Points line;
  for (const size_t i : pareto_frontier(measured)) {
    on[i] = true;
    line.emplace_back(x(drawn[i].cost), y(drawn[i].loss));
  }

  svg::Picture picture;
  LabelPlacer placer(kArea);
  picture.text(20, 34, chart.title, {.size = 16, .bold = true});
  draw_axes(picture, kArea, x, y, chart.cost, chart.loss);
  picture.polyline(line, {kOn, 2, ""});
  bool chosen = false;
  for (const bool front : {false, true}) {
    for (size_t i = 0; i < drawn.size(); ++i) {
      if (on[i] != front) continue;
      const double px = x(drawn[i].cost), py = y(drawn[i].loss);
      picture.marker(shape(drawn[i].kind), px, py, front ? 5 : 4, front ? kOn : kOff, "#ffffff");
      if (drawn[i].chosen) picture.marker(svg::Marker::Circle, px, py, 8, "none", kChosen);
      placer.block(px, py, drawn[i].chosen ? 9 : 6);
      chosen = chosen || drawn[i].chosen;
    }
  }
  for (size_t i = 1; i < line.size(); ++i) {
    placer.block_line(line[i - 1].first, line[i - 1].second, line[i].first, line[i].second);
  }
  // The frontier's labels first: they get the best places.
  for (const bool front : {true, false}) {
    for (size_t i = 0; i < drawn.size(); ++i) {
      if (on[i] != front || (!front && !drawn[i].chosen && drawn.size() > kMostLabels)) continue;
      draw_label(picture, placer, x(drawn[i].cost), y(drawn[i].loss), drawn[i], front);
    }
  }
  if (drawn.empty()) {
    picture.text((kArea.left + kArea.right) / 2, (kArea.top + kArea.bottom) / 2, "no values",
                 {.size = 14, .anchor = svg::Anchor::Middle, .colour = "#666666"});
  }
  if (drawn.size() < chart.points.size()) {
    picture.text(kArea.left, kHeight - 24,
                 fmt::format("{} of {} points have no place on these axes", chart.points.size() - drawn.size(),
                             chart.points.size()),
                 {.size = 11, .colour = "#666666"});
  }
  const double width = std::max(draw_legend(picture, chosen, chart.kinds), 40 + svg::text_width(chart.title, 16));
  return picture.document(width, kHeight, chart.title, chart.description);
}

}  // namespace tidal
