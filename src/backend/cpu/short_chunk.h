// Where decoding ends and prefill begins.
#pragma once

namespace tidal {

/// Most rows of a chunk that are attended to row by row (attention.h) and take the quantised dots (dot_matmul.h); a
/// longer chunk takes bf16 products (prefill_attention.h, gemm.h). What a row gets depends on its own chunk's length
/// only, never on its company in the batch.
inline constexpr int kShortChunk = 8;

}  // namespace tidal
