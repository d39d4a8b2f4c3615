// A Scan layer that estimates what it does not select (Completion), written for reading.
#pragma once

#include <vector>

#include "backend/batch.h"
#include "backend/reference/select.h"

namespace tidal::reference {

/// The row of a sparse chunk, of one KV head.
struct CompletedRow {
  const Chunk& chunk;
  KvLayer kv;
  int kv_head;
  const float* q;            ///< [heads, head_dim], of its query heads
  const float* sink_logits;  ///< [heads], of Backend::attend(); null: none
};

/// `scores`: of its query heads, full blocks by their sketches. Returns the selection, ascending; out: [heads,
/// head_dim].
std::vector<int32_t> complete(const CompletedRow& row, std::vector<Scores> scores, float* out);

}  // namespace tidal::reference
