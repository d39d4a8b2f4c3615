// The recurrence of the delta rule, float32, dispatched at run time to the best instruction set.
#pragma once

#include <cstdint>

namespace tidal {

/// Rows of one chunk for one value head, and its matrix S [dim, dim].
struct DeltaRows {
  int rows = 0, dim = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr;  ///< [rows, dim], `stride` floats from row to row
  int64_t stride = 0;
  const float *kept = nullptr, *written = nullptr;  ///< [rows], `factor_stride` floats from one to the next
  int64_t factor_stride = 0;
  float* s = nullptr;
  float* out = nullptr;  ///< [rows, dim], `out_stride` floats from row to row
  int64_t out_stride = 0;
};
/// For every row S = kept S + k (written (v - kept S^T k))^T and out = S^T q, of elements [first, first + count) of the
/// values. What an element gets depends on its own column of S alone.
void delta_rows(const DeltaRows& rows, int first, int count);

}  // namespace tidal
