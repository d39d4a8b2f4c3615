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
  std::span<const BlockId> blocks;  ///< [blocks_for(context())], the sequence's block table
  /// [layers]; empty: Dense in all. With roles, rows == 1 and context() > policy.budget.
  std::span<const Role> roles;
  Policy policy;  ///< in numbers (Policy::at); of no account without roles

  int context() const { return position + rows; }  ///< positions in the cache once the chunk is appended
  bool sparse() const { return !roles.empty(); }
  Role role(int layer) const { return sparse() ? roles[layer] : Role::Dense; }
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

/// The positions that the last Select layer chose for every sparse chunk, in the backend's memory. Sparse chunks have
/// one row and come first in a batch, so `rows` of as many sequences are enough.
struct Selection {
  int32_t* positions = nullptr;  ///< [rows, row_positions]: of a chunk's row [units, policy.budget], ascending
  int32_t* counts = nullptr;     ///< [rows, row_units]: how many there are, 1 to policy.budget, per unit
  int row_positions = 0;
  int row_units = 0;

  int32_t* unit(const Chunk& chunk, int index) const {
    return positions + int64_t{row_positions} * chunk.first_row + int64_t{chunk.policy.budget} * index;
  }
  int32_t& count(const Chunk& chunk, int index) const { return counts[row_units * chunk.first_row + index]; }
};

}  // namespace tidal
