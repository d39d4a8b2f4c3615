// Line charts: named series of points, with standard errors where there are some.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/axis.h"

namespace tidal {

struct LinePoint {
  double x = 0;
  double y = 0;
  std::optional<double> error = {};  ///< standard error of y; drawn as a bar from y - error to y + error
};

struct LineSeries {
  std::string name;
  std::vector<LinePoint> points;  ///< joined in this order
};

struct LineChart {
  std::string title;
  std::string description;  ///< for readers who do not see the picture
  Axis x;
  Axis y;
  std::vector<LineSeries> series;
};

/// The picture as SVG. Points whose x or y has no place on its axis (not finite; not positive on a logarithmic one) are
/// left out, break their line, and are counted below the chart. The values stand at the points when there are at most
/// 40 of them.
std::string to_svg(const LineChart& chart);

}  // namespace tidal
