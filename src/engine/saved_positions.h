// Which of the positions that a sequence can go on from it can best do without.
#pragma once

#include <cstddef>
#include <span>

namespace tidal {

/// The index of the one whose neighbours are nearest to each other, in relation to how far back it is: so that they are
/// the denser the nearer to the end. `positions`: ascending, at least two; never the last.
inline size_t least_missed(std::span<const int> positions) {
  const auto cost = [&](size_t i) {
    const int before = i == 0 ? 0 : positions[i - 1];
    return static_cast<double>(positions[i + 1] - before) / (positions.back() - positions[i]);
  };
  size_t cheapest = 0;
  for (size_t i = 1; i + 1 < positions.size(); ++i) {
    if (cost(i) < cost(cheapest)) cheapest = i;
  }
  return cheapest;
}

}  // namespace tidal
