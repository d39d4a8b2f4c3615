// Heat maps with the number in every cell, one or several in a picture with one colour scale.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/axis.h"

namespace tidal {

struct HeatMap {
  std::string title;                          ///< e.g. the policy
  std::vector<std::optional<double>> values;  ///< [rows][columns]; nullopt: nothing was measured there
};

/// Maps over the same rows and columns.
struct HeatMapChart {
  std::string title;
  std::string description;  ///< for readers who do not see the picture
  std::string row_axis;
  std::string column_axis;
  std::string value_name;  ///< beside the colour scale
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::vector<HeatMap> maps;
  bool stacked = false;       ///< below each other instead of side by side
  Unit unit = Unit::Number;   ///< of the scale; Percent: cells show 95 for .95
  int decimals = 2;           ///< of the number in a cell
  std::optional<double> low;  ///< ends of the colour scale; from the values where absent
  std::optional<double> high;
};

/// The picture as SVG. Cells without a value are grey with a dash, values that are not finite grey with "n/a". Throws
/// Error when a map has another number of values than rows times columns.
std::string to_svg(const HeatMapChart& chart);

}  // namespace tidal
