// The attention kernel of decoding: a group of query heads over any list of K/V rows.
#pragma once

#include <cstddef>

#include "core/bf16.h"

namespace tidal {

/// Softmax attention of some query heads over some rows, not yet divided by its sum, so that parts can be merged.
/// `maximum` is of the scaled scores; -infinity with sum 0 when no row had a finite score.
struct AttentionPart {
  float* output;   ///< [heads, padded_dim], in the kernel's element order
  float* maximum;  ///< [heads]
  float* sum;      ///< [heads], of exp(score * scale - maximum)
};

struct AttendRowsArgs {
  const float* q = nullptr;             ///< [heads, padded_dim], by attend_rows_load_query()
  int heads = 0;                        ///< query heads that share the rows' KV head
  int head_dim = 0;                     ///< multiple of 16
  const Bf16* const* rows = nullptr;    ///< [count] rows [K head_dim | V head_dim]
  int count = 0;
  float scale = 1;                      ///< factor on q.k before the softmax
  float* scores = nullptr;              ///< when set: raw q.k of head h and row i goes to scores[h * scores_stride + i]
  std::ptrdiff_t scores_stride = 0;
  AttentionPart part;
};

/// Elements that one head takes in the kernel's buffers: head_dim rounded up to whole vectors of this machine.
int attend_rows_padded_dim(int head_dim);
/// Sorts one head of q [head_dim] into the kernel's element order, [padded_dim].
void attend_rows_load_query(const float* q, int head_dim, float* sorted);
/// Merges `count` parts, `stride` floats apart from `first` on, in this order, and writes the finished output
/// [heads, head_dim]. When `maximum` and `sum` are set, they receive the merged statistics [heads].
void merge_parts(const AttentionPart& first, std::ptrdiff_t stride, int count, int heads, int head_dim, float* out,
                 float* maximum, float* sum);

/// Each row's K and V are read once for all heads; softmax is online, by 64 rows; float32 arithmetic.
void attend_rows(const AttendRowsArgs& args);

}  // namespace tidal
