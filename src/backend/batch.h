// What one forward pass works on: the batch, and views of activations, the KV cache and the selection.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/hyperparameters.h"
#include "backend/kv_memory.h"
#include "backend/kv_row.h"
#include "backend/policy.h"
#include "backend/sketch.h"
#include "backend/value_sketch.h"
#include "core/bf16.h"

namespace tidal {

using BlockId = int32_t;

struct KvLayer;

inline constexpr int blocks_for(int64_t positions) {
  return static_cast<int>((positions + kBlockTokens - 1) / kBlockTokens);
}

/// Most positions of a set: the budget, and the block still filling where a Scan layer selects.
inline constexpr int most_selected(const Policy& policy) { return policy.budget + kBlockTokens - 1; }

/// The tokens of one sequence that a forward pass takes in.
struct Chunk {
  int first_row = 0;  ///< its first row in the batch
  int rows = 0;       ///< its tokens, >= 1
  int position = 0;   ///< position of its first token
  /// [blocks_for(context())], the sequence's block table: where its blocks are now, as slots of KvLayer. With memory
  /// that is all on the device, and where nothing has moved, a block's slot is its id.
  std::span<const BlockId> blocks;
  /// The same of layers whose cache keeps their window only (KvLayer::windowed), [blocks_for(context())]: blocks before
  /// Hyperparameters::first_seen() may be any. Empty where there are none.
  std::span<const BlockId> window_blocks = {};
  /// Of each of `blocks` that lies in host memory a number that no other content of a slot has had: what has been
  /// copied of the slot under another number is not what it holds now. Before a pass that writes there it is a new one.
  /// Empty where all of `blocks` are on the device.
  std::span<const uint32_t> generations = {};
  /// [layers]; empty: Dense in all. With roles, rows == 1 and context() > policy.budget.
  std::span<const Role> roles;
  Policy policy;  ///< in numbers (Policy::at); of no account without roles
  /// Positions of the sequence in the cache after the pass; more than context() when the chunk computes the K/V of
  /// earlier positions again.
  int cached = 0;
  /// The sequence's state behind position - 1, and behind the chunk after the pass: of each recurrent layer, one behind
  /// the other, DeltaNet::state_elements(). What it holds before position 0 is of no account: that counts as zeros.
  float* state = nullptr;
  const void* sequence = nullptr;  ///< whose tokens they are, for those who watch; of no account to backends

  int context() const { return position + rows; }  ///< positions that its last row attends to
  inline std::span<const BlockId> blocks_of(const KvLayer& kv) const;
  bool sparse() const { return !roles.empty(); }
  bool on_host() const { return !generations.empty(); }  ///< some of its blocks are
  Role role(int layer) const { return sparse() ? roles[layer] : Role::Dense; }
  /// The blocks whose keys the chunk writes and that are full after it, [first, end) of `blocks`: to be sketched.
  int first_full() const { return position / kBlockTokens; }
  int end_full() const { return std::min(blocks_for(context()), cached / kBlockTokens); }
  int most_selected() const { return tidal::most_selected(policy); }
};

/// The policy by which a Scan layer selects at a context: the block still filling is selected whole, on top of the
/// budget.
inline Policy scan_policy(Policy policy, int context) {
  const int filling = context % kBlockTokens;
  policy.budget = std::min(policy.budget + filling, context);
  policy.recent = std::max(policy.recent, filling);
  return policy;
}

/// The policy by which the best `budgets` budgets of positions are taken there (Completion): a tier of them, the block
/// still filling included.
inline Policy tier_policy(Policy policy, int context, int budgets) {
  policy.budget = static_cast<int>(std::min<int64_t>(int64_t{policy.budget} * budgets, context));
  return scan_policy(policy, context);
}

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
  bool operator==(const Rows&) const = default;
};

/// The KV cache of one layer: [slot][kv_head][64 tokens] rows [K head_dim | V head_dim] of `type`, as KvRowLayout has
/// them, in the backend's memory. A slot has the room of a block; the entries of Chunk's tables are slots.
struct KvLayer {
  std::byte* data = nullptr;
  int kv_heads = 0;
  int head_dim = 0;
  KvType type = KvType::Bf16;
  bool windowed = false;  ///< its blocks are those of Chunk::window_blocks
  /// Bytes from one tile to the next, and from one sketch to the next; 0: they follow each other. Others are where a
  /// caller's pages hold more than rows (tidal_attention.h), of bf16 or float32 and all in one place.
  int64_t tile_stride = 0, sketch_stride = 0;
  /// Slots from here on lie in host memory, which the device reads at the same addresses, slowly. Sketches of all slots
  /// are on the device.
  int device_slots = kAllSlots;
  KvMemory* memory = nullptr;    ///< what `data` is of, where some slots are in host memory
  const KvFile* file = nullptr;  ///< what `data` is a mapping of, where it is in a file
  /// Sketches of the keys with 1, 2 and 4 bits, [block][kv_head][SketchLayout::bytes()] each; null: not kept.
  std::array<std::byte*, kSketchBits.size()> sketches = {};
  /// Sketches of the values, [block][kv_head][ValueSketchLayout::bytes()], one behind the other; null: not kept.
  std::byte* value_sketches = nullptr;

  KvRowLayout row_layout() const { return {type, head_dim}; }
  int64_t row_bytes() const { return row_layout().bytes(); }
  int64_t tile_bytes() const { return kBlockTokens * row_bytes(); }
  int64_t bytes_between_tiles() const { return tile_stride > 0 ? tile_stride : tile_bytes(); }
  int64_t bytes_between_sketches(int bits) const {
    return sketch_stride > 0 ? sketch_stride : SketchLayout{head_dim, bits}.bytes();
  }
  /// The 64 rows of one block and KV head.
  std::byte* tile(BlockId block, int kv_head) const {
    return data + (static_cast<int64_t>(block) * kv_heads + kv_head) * bytes_between_tiles();
  }
  /// The row of position `offset` of that block.
  std::byte* row(BlockId block, int kv_head, int offset) const { return tile(block, kv_head) + offset * row_bytes(); }
  bool keeps_sketch(int bits) const { return sketches[bits / 2] != nullptr; }
  std::byte* sketch(int bits, BlockId block, int kv_head) const {
    return sketches[bits / 2] + (static_cast<int64_t>(block) * kv_heads + kv_head) * bytes_between_sketches(bits);
  }
  std::byte* value_sketch(BlockId block, int kv_head) const {
    return value_sketches + (static_cast<int64_t>(block) * kv_heads + kv_head) * ValueSketchLayout{head_dim}.bytes();
  }
  bool operator==(const KvLayer&) const = default;
};

inline std::span<const BlockId> Chunk::blocks_of(const KvLayer& kv) const {
  return kv.windowed ? window_blocks : blocks;
}

/// The positions that the last Select or Scan layer chose for every sparse chunk, in the backend's memory. Sparse
/// chunks have one row and come first in a batch, so `rows` of as many sequences are enough.
struct Selection {
  int32_t* positions = nullptr;  ///< [rows, row_positions]: of a chunk's row [units, most_selected()], ascending
  int32_t* counts = nullptr;     ///< [rows, row_units]: how many there are, 1 to most_selected(), per unit
  int row_positions = 0;
  int row_units = 0;

  int32_t* unit(const Chunk& chunk, int index) const {
    return positions + int64_t{row_positions} * chunk.first_row + int64_t{chunk.most_selected()} * index;
  }
  int32_t& count(const Chunk& chunk, int index) const { return counts[row_units * chunk.first_row + index]; }
  bool operator==(const Selection&) const = default;
};

}  // namespace tidal
