// What one forward pass works on: the batch, and views of activations, the KV cache and the selection.
#pragma once

#include <cstdint>
#include <span>

#include "backend/hyperparameters.h"
#include "backend/policy.h"
#include "core/bf16.h"

namespace tidal {

inline constexpr int kBlockTokens = 64;  ///< positions in one block of the KV pool
using BlockId = int32_t;

inline constexpr int blocks_for(int64_t positions) {
  return static_cast<int>((positions + kBlockTokens - 1) / kBlockTokens);
}

/// The tokens of one sequence that a forward pass takes in.
struct Chunk {
  int first_row = 0;                ///< its first row in the batch
  int rows = 0;                     ///< its tokens, >= 1
  int position = 0;                 ///< position of its first token
  bool sparse = false;              ///< Sparse layers read the selection; only with rows == 1 and context() > budget
  std::span<const BlockId> blocks;  ///< [blocks_for(context())], the sequence's block table

  int context() const { return position + rows; }  ///< positions in the cache once the chunk is appended
};

/// The chunks of one forward pass: any mix of prefill and decode, in ascending order of their length, each of another
/// sequence. Rows of consecutive chunks follow each other. All spans are host memory.
struct Batch {
  std::span<const Token> tokens;       ///< [rows]
  std::span<const int32_t> positions;  ///< [rows]
  std::span<const Chunk> chunks;
  std::span<const int32_t> logit_rows;  ///< rows whose logits are wanted, ascending

  int rows() const { return static_cast<int>(tokens.size()); }
};

/// Activations [rows, width], float32, in the backend's memory; row r starts at data + r * width.
struct Rows {
  float* data = nullptr;
  int rows = 0;
  int width = 0;

  float* row(int index) const { return data + static_cast<int64_t>(index) * width; }
};

/// The KV cache of one layer: [block][kv_head][64 tokens][K head_dim | V head_dim], bf16, in the backend's memory.
struct KvLayer {
  Bf16* data = nullptr;
  int kv_heads = 0;
  int head_dim = 0;

  int64_t tile_elements() const { return int64_t{2} * kBlockTokens * head_dim; }
  /// The 64 rows [K | V] of one block and KV head.
  Bf16* tile(BlockId block, int kv_head) const {
    return data + (static_cast<int64_t>(block) * kv_heads + kv_head) * tile_elements();
  }
};

/// The positions that the last Select layer chose, in the backend's memory. Only rows of sparse chunks are filled;
/// each then has exactly policy.budget positions per unit, ascending.
struct Selection {
  Policy policy;
  int units = 0;                 ///< sets per row: scope_units(policy.scope, heads, kv_heads)
  int32_t* positions = nullptr;  ///< [rows, units, policy.budget]

  int32_t* unit(int row, int index) const {
    return positions + (static_cast<int64_t>(row) * units + index) * policy.budget;
  }
};

}  // namespace tidal
