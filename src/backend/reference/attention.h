// Attention of one query head, and the scores of a Scan layer, by plain loops.
#pragma once

#include <span>
#include <vector>

#include "backend/batch.h"
#include "backend/reference/select.h"

namespace tidal::reference {

/// The row [K | V] of one position and KV head.
inline std::byte* kv_row(const Chunk& chunk, const KvLayer& kv, int kv_head, int position) {
  return kv.row(chunk.blocks_of(kv)[position / kBlockTokens], kv_head, position % kBlockTokens);
}

/// One query head over `positions`, and its sink_logit, or null: out [head_dim]. Returns the raw scores q.k.
/// cap: of these scores in the softmax; 0: none.
Scores attend_head(const float* query, const Chunk& chunk, const KvLayer& kv, int kv_head,
                   std::span<const int32_t> positions, float cap, const float* sink_logit, float* out);
/// Every head's scores of a sparse chunk's row: full blocks by their sketches, the last one by its keys.
std::vector<Scores> scan_scores(const Chunk& chunk, int heads, Rows q, const KvLayer& kv);

}  // namespace tidal::reference
