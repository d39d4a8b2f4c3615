#include "report/axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace tidal {
namespace {

constexpr int kMostTicks = 8;

// Significant digits that a tick or a label needs, without an exponent where a person would write none.
std::string plain(double value) {
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size >= 1e7 || size < 1e-4) return fmt::format("{:.2e}", value);
  const int digits = std::clamp(2 - static_cast<int>(std::floor(std::log10(size))), 0, 6);
  std::string text = fmt::format("{:.{}f}", value, digits);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::string count(double value) {
  constexpr const char* kSuffixes[] = {"", "K", "M", "G"};
  size_t power = 0;
  while (power + 1 < std::size(kSuffixes) && value != 0 && std::fmod(value, 1024) == 0) {
    value /= 1024;
    ++power;
  }
  return plain(value) + kSuffixes[power];
}

std::string bytes(double value) {
  constexpr const char* kSuffixes[] = {" B", " kB", " MB", " GB", " TB"};
  size_t power = 0;
  while (power + 1 < std::size(kSuffixes) && std::abs(value) >= 999.5) {
    value /= 1000;
    ++power;
  }
  return plain(value) + kSuffixes[power];
}

// 1, 2 or 5 times a power of ten, at least `step`.
double nice_step(double step) {
  const double power = std::pow(10, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::vector<double> linear_ticks(double& low, double& high) {
  const double step = nice_step((high - low) / kMostTicks);
  low = std::floor(low / step + 1e-9) * step;
  high = std::ceil(high / step - 1e-9) * step;
  std::vector<double> ticks;
  const auto n = std::llround((high - low) / step);
  // Times, not plus: sums drift. The sum of a tick that is zero is not exactly zero.
  for (long long i = 0; i <= n; ++i) {
    const double value = low + static_cast<double>(i) * step;
    ticks.push_back(std::abs(value) < step * 1e-6 ? 0 : value);
  }
  return ticks;
}

std::vector<double> binary_ticks(double low, double high) {
  const auto first = static_cast<int>(std::ceil(std::log2(low) - 1e-9));
  const auto last = static_cast<int>(std::floor(std::log2(high) + 1e-9));
  const int step = last < first ? 1 : (last - first) / (2 * kMostTicks) + 1;
  std::vector<double> ticks;
  for (int power = first; power <= last; power += step) ticks.push_back(std::exp2(power));
  return ticks;
}

std::vector<double> decimal_ticks(double low, double high) {
  const double decades = std::log10(high) - std::log10(low);  // high / low may be infinite
  const int step = static_cast<int>(decades / kMostTicks) + 1;
  const auto first = static_cast<int>(std::floor(std::log10(low)));
  const auto last = static_cast<int>(std::ceil(std::log10(high)));
  std::vector<double> ticks;
  for (int power = first; power <= last; power += step) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * std::pow(10, power);
      const bool wanted = factor == 1 || decades <= 2.5;
      if (wanted && value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push_back(value);
    }
  }
  return ticks;
}

}  // namespace

std::string format_value(double value, Unit unit) {
  if (!std::isfinite(value)) return "n/a";
  switch (unit) {
    case Unit::Count: return count(value);
    case Unit::Bytes: return bytes(value);
    case Unit::Percent: return plain(value * 100) + " %";
    case Unit::Number: break;
  }
  return plain(value);
}

bool drawable(double value, Scale scale) {
  return std::isfinite(value) && (scale == Scale::Linear || scale == Scale::Span || value > 0);
}

AxisMap::AxisMap(const Axis& axis, std::span<const double> values, double first_pixel, double last_pixel)
    : axis_(axis), first_pixel_(first_pixel), last_pixel_(last_pixel) {
  double lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
  for (const double value : values) {
    if (!drawable(value, axis.scale)) continue;
    lowest = std::min(lowest, value);
    highest = std::max(highest, value);
  }
  std::vector<double> ticks;
  if (axis.scale == Scale::Linear || axis.scale == Scale::Span) {
    const bool from_zero = axis.scale == Scale::Linear;
    low_ = from_zero ? std::min(lowest, 0.0) : lowest;
    high_ = from_zero ? std::max(highest, 0.0) : highest;
    if (!from_zero && low_ <= high_) {
      // A point at the very edge has no room for its label, and one value alone no width.
      const double room = std::max((high_ - low_) * 0.06, std::abs(high_) * 0.01);
      low_ -= room;
      high_ += room;
    }
    // None, all zero, or a range so wide or so small that its ticks would not be numbers.
    if (!(high_ - low_ > 1e-300 && high_ - low_ < 1e300)) {
      low_ = low_ < 0 && from_zero ? -1 : 0;
      high_ = 1;
    }
    ticks = linear_ticks(low_, high_);
  } else {
    low_ = lowest <= highest ? lowest : 1;
    high_ = lowest <= highest ? highest : 2;
    const bool binary = axis.scale == Scale::Log2;
    // A point at the very edge has no room for its marker, and one value alone no width. At the ends of what a double
    // holds, room would be infinity or zero.
    const double room = binary ? std::exp2(std::max(0.35, 0.04 * (std::log2(high_) - std::log2(low_))))
                               : std::pow(10, std::max(0.08, 0.04 * (std::log10(high_) - std::log10(low_))));
    low_ = std::max(low_ / room, std::numeric_limits<double>::min());
    high_ = std::min(high_ * room, std::numeric_limits<double>::max());
    ticks = binary ? binary_ticks(low_, high_) : decimal_ticks(low_, high_);
    if (ticks.empty() && lowest <= highest) ticks = {lowest, highest};
    ticks.erase(std::unique(ticks.begin(), ticks.end()), ticks.end());
  }
  for (const double value : ticks) {
    if (drawable(value, axis.scale)) ticks_.push_back({(*this)(value), format_value(value, axis.unit)});
  }
}

double AxisMap::along(double value) const {
  return axis_.scale == Scale::Linear || axis_.scale == Scale::Span ? value : std::log(value);
}

double AxisMap::operator()(double value) const {
  if (!drawable(value, axis_.scale)) return std::numeric_limits<double>::quiet_NaN();
  const double share = (along(value) - along(low_)) / (along(high_) - along(low_));
  return first_pixel_ + share * (last_pixel_ - first_pixel_);
}

void draw_axes(svg::Picture& picture, const PlotArea& area, const AxisMap& x, const AxisMap& y, const Axis& x_axis,
               const Axis& y_axis) {
  const svg::Stroke grid = {"#e3e3e3", 1, ""}, frame = {"#666666", 1, ""};
  constexpr double kSize = 11;
  double last_label = -1e9;
  for (const AxisMap::Tick& tick : x.ticks()) {
    picture.line(tick.pixel, area.top, tick.pixel, area.bottom, grid);
    const double half = svg::text_width(tick.label, kSize) / 2;
    if (tick.pixel - half < last_label + 6) continue;  // no room beside the label before
    picture.text(tick.pixel, area.bottom + 16, tick.label, {.size = kSize, .anchor = svg::Anchor::Middle});
    last_label = tick.pixel + half;
  }
  for (const AxisMap::Tick& tick : y.ticks()) {
    picture.line(area.left, tick.pixel, area.right, tick.pixel, grid);
    picture.text(area.left - 7, tick.pixel + 4, tick.label, {.size = kSize, .anchor = svg::Anchor::End});
  }
  picture.line(area.left, area.bottom, area.right, area.bottom, frame);
  picture.line(area.left, area.top, area.left, area.bottom, frame);
  picture.text((area.left + area.right) / 2, area.bottom + 38, x_axis.name, {.anchor = svg::Anchor::Middle});
  picture.text(area.left - 58, (area.top + area.bottom) / 2, y_axis.name,
               {.anchor = svg::Anchor::Middle, .upright = true});
}

void LabelPlacer::block(double x, double y, double radius) {
  taken_.push_back({x - radius, y - radius, x + radius, y + radius});
}

void LabelPlacer::block_line(double x1, double y1, double x2, double y2) {
  const double length = std::hypot(x2 - x1, y2 - y1);
  if (!std::isfinite(length)) return;
  // Small boxes: a label on a line is worse than one a little away, and better than one on another.
  constexpr double kStep = 6;
  const int steps = static_cast<int>(std::min(length / kStep, 1000.0)) + 1;
  for (int i = 0; i <= steps; ++i) block(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps, 1);
}

double LabelPlacer::overlap(const Box& box) const {
  double sum = 0;
  for (const Box& other : taken_) {
    const double width = std::min(box.right, other.right) - std::max(box.left, other.left);
    const double height = std::min(box.bottom, other.bottom) - std::max(box.top, other.top);
    if (width > 0 && height > 0) sum += width * height;
  }
  return sum;
}

LabelPlacer::Place LabelPlacer::place(double x, double y, std::string_view text, double size) {
  const double width = svg::text_width(text, size), height = size;
  Box best = {};
  double best_cost = std::numeric_limits<double>::infinity();
  bool away = false;
  for (const double distance : {8.0, 15.0, 24.0, 36.0, 52.0, 72.0}) {
    // Above and below first: a label there is taken for its point's and leaves the line free.
    const double half = width / 2, beside = distance * 0.7;
    const std::pair<double, double> corners[] = {
        {x - half, y - distance - height},         {x - half, y + distance},          {x + distance, y - height / 2},
        {x - distance - width, y - height / 2},    {x + beside, y - beside - height}, {x + beside, y + beside},
        {x - beside - width, y - beside - height}, {x - beside - width, y + beside}};
    for (auto [left, top] : corners) {
      left = std::max(std::min(left, area_.right - width), area_.left);
      top = std::max(std::min(top, area_.bottom - height), area_.top);
      const Box box = {left, top, left + width, top + height};
      const double cost = overlap(box) + distance;
      if (cost < best_cost) {
        best = box;
        best_cost = cost;
        away = distance > 15;
      }
    }
  }
  taken_.push_back(best);
  return {best.left, best.bottom - size * 0.2, away};
}

}  // namespace tidal
