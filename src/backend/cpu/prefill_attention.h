// Attention of the long chunks of a batch: causal prefill.
#pragma once

#include "backend/cpu/attention.h"
#include "backend/cpu/gemm.h"

namespace tidal {

/// Causal attention of one long chunk (any length) by bf16 matrix products over spans of the context, or of the window.
/// `group`: query heads that share a KV head; `requests` has begun the layer.
void prefill_attention(const Chunk& chunk, LayerOptions options, Rows q, KvLayer kv, int group, Rows out, Gemm& gemm,
                       const KvRequests& requests, int threads);

}  // namespace tidal
