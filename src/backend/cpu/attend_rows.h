// The attention kernel of decoding: a group of query heads over any list of K/V rows.
#pragma once

#include <cstddef>

#include "backend/hyperparameters.h"
#include "backend/kv_row.h"

namespace tidal {

/// Query heads that one call can take; a larger group goes in several calls.
inline constexpr int kMaxAttendHeads = 16;

/// Softmax attention of some query heads over some rows, not yet divided by its sum, so that parts can be merged.
struct AttentionPart {
  float* output;   ///< [heads, head_dim]
  float* maximum;  ///< [heads], of the scaled scores; -infinity when there was none above that
  float* sum;      ///< [heads], of exp(score * scale - maximum)
};

struct AttendRowsArgs {
  const float* q = nullptr;  ///< [heads, head_dim]
  int heads = 0;             ///< query heads that share the rows' KV head, 1 to kMaxAttendHeads
  int head_dim = 0;          ///< multiple of 16, at most kMostHeadDim
  KvType type = KvType::Bf16;
  const std::byte* const* rows = nullptr;  ///< [count] rows [K head_dim | V head_dim] of the cache
  int count = 0;
  float cap = 0;            ///< q.k become cap * tanh(q.k / cap) for the softmax; 0: they stay
  float scale = 1;          ///< factor on q.k before the softmax
  float* scores = nullptr;  ///< when set: raw q.k of head h and row i goes to scores[h * scores_stride + i]
  std::ptrdiff_t scores_stride = 0;
  bool capped_scores = false;  ///< `scores` gets them with their cap
  AttentionPart part;
};

/// Each row's K and V are read once for all heads; softmax is online, by 64 rows. Takes the fastest of the kernels
/// below that this processor has.
void attend_rows(const AttendRowsArgs& args);

/// By float32 products, on any processor.
void attend_rows_f32(const AttendRowsArgs& args);
/// By bf16 products with float32 sums (AVX512-BF16): q and the softmax weights are rounded to bf16, as prefill does.
/// Returns false, having done nothing, where the processor has no such instructions, or rows are of another type.
bool attend_rows_bf16(const AttendRowsArgs& args);
/// By integer products (AVX512-VNNI) of rows of 8 bits: q, and the softmax weights times the values' scales, are
/// rounded to 16 bits of the largest of them. Returns false likewise.
bool attend_rows_q8(const AttendRowsArgs& args);

/// Of the scores of one head and rows from `first` on: gives them their cap, and AttendRowsArgs::scores what it wants.
void cap_scores(const AttendRowsArgs& args, int head, int first, int count, float* scores);

/// Merges `count` parts, `stride` floats apart from `first` on, in this order, and writes the finished output
/// [heads, head_dim]. `sink_logits`, where set, are one more scaled score [heads], of no value. When `maximum` and
/// `sum` are set, they receive the merged statistics [heads], without the sink_logits.
void merge_parts(const AttentionPart& first, std::ptrdiff_t stride, int count, int heads, int head_dim,
                 const float* sink_logits, float* out, float* maximum, float* sum);

}  // namespace tidal
