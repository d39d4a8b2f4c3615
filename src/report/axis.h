// What the charts share: axes and where labels go.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "report/svg.h"

namespace tidal {

enum class Scale {
  Linear,  ///< from zero, or from the lowest value when there are negative ones
  Span,    ///< linear over the values alone; for charts in which zero says nothing
  Log2,    ///< ticks at powers of two; values of at most zero have no place
  Log10    ///< ticks at 1, 2 and 5 of each power of ten; values of at most zero have no place
};

enum class Unit {
  Number,
  Count,   ///< K, M, G are powers of 1024 where a value is a whole number of them: 4096 is 4K, 1000 is 1000
  Bytes,   ///< powers of 1000: 1.5 MB
  Percent  ///< a share: 0.5 is 50 %
};

struct Axis {
  std::string name;
  Scale scale = Scale::Linear;
  Unit unit = Unit::Number;
};

/// `value` in `unit` with about three significant digits. Values that are not finite: "n/a".
std::string format_value(double value, Unit unit);

/// Whether a value has a place on an axis of this scale.
bool drawable(double value, Scale scale);

/// An axis laid over pixels.
class AxisMap {
 public:
  struct Tick {
    double pixel = 0;
    std::string label;
  };

  /// Covers all drawable `values`, and 0 to 1 (1 to 2 on a logarithmic axis) when there are none.
  AxisMap(const Axis& axis, std::span<const double> values, double first_pixel, double last_pixel);

  /// The pixel of a drawable value; NaN for any other.
  double operator()(double value) const;
  const std::vector<Tick>& ticks() const { return ticks_; }

 private:
  double along(double value) const;  // where the scale is even

  Axis axis_;
  double low_ = 0, high_ = 1;  // in values
  double first_pixel_, last_pixel_;
  std::vector<Tick> ticks_;
};

/// The rectangle inside the axes.
struct PlotArea {
  double left = 0, top = 0, right = 0, bottom = 0;
};

/// Grid lines, tick labels, axis names.
void draw_axes(svg::Picture& picture, const PlotArea& area, const AxisMap& x, const AxisMap& y, const Axis& x_axis,
               const Axis& y_axis);

/// Finds places for labels beside points so that they cover neither points nor each other where there is room.
class LabelPlacer {
 public:
  struct Place {
    double x = 0, y = 0;  ///< where the text starts; its baseline
    bool away = false;    ///< so far from its point that a line should lead there
  };

  explicit LabelPlacer(const PlotArea& area) : area_(area) {}
  /// A point of `radius`, and a line, that labels keep away from.
  void block(double x, double y, double radius);
  void block_line(double x1, double y1, double x2, double y2);
  Place place(double x, double y, std::string_view text, double size);

 private:
  struct Box {
    double left, top, right, bottom;
  };
  double overlap(const Box& box) const;  // square pixels

  PlotArea area_;
  std::vector<Box> taken_;
};

}  // namespace tidal
