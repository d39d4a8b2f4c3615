// Candidates by cost and loss: which of them nothing beats, and a picture of them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "report/axis.h"

namespace tidal {

struct CostLoss {
  double cost = 0;
  double loss = 0;
};

/// Indices of the Pareto frontier by rising cost: the points for which no other has at most their cost and at most
/// their loss, one of them less. Of equal points the first one counts. Points with NaN or infinity are never on it.
std::vector<size_t> pareto_frontier(std::span<const CostLoss> points);

struct FrontierPoint {
  std::string label;
  double cost = 0;
  double loss = 0;
  bool chosen = false;  ///< drawn with a ring
  size_t kind = 0;      ///< index into FrontierChart::kinds
};

struct FrontierChart {
  std::string title;
  std::string description;  ///< for readers who do not see the picture
  Axis cost = {"bytes read per token", Scale::Span, Unit::Bytes};
  Axis loss = {"KL divergence", Scale::Linear, Unit::Number};
  std::vector<std::string> kinds;  ///< names, each with a marker of its own: four at most; none where there is one kind
  std::vector<FrontierPoint> points;
};

/// The picture as SVG: all points, the frontier as a line through its own, labels displaced so that they do not cover
/// each other. Only the frontier and chosen points are labelled when there are more than 30. Points that have no place
/// on the axes are counted below the chart.
std::string to_svg(const FrontierChart& chart);

}  // namespace tidal
