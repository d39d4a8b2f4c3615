// Exact top-k.
#pragma once

#include <cstdint>

namespace tidal {

/// Writes the positions in [first, first + count) of the k highest scores, ascending. Ties go to the lower position;
/// NaN ranks below everything; -0 equals +0. 0 <= k <= count. O(count).
void top_k(const float* scores, int first, int count, int k, int32_t* positions);

}  // namespace tidal
