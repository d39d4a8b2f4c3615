// The KV cache of all sequences: fixed-size blocks, handed out and reference counted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace tidal {

/// Memory [layer][block][kv_head][64 tokens][K | V], bf16. One block id stands for the same 64 positions in every
/// layer.
class KvPool {
 public:
  /// Throws Error with the size asked for when the memory cannot be had.
  KvPool(Backend& backend, const Hyperparameters& hp, int blocks);

  int blocks() const { return static_cast<int>(references_.size()); }
  int free_blocks() const { return static_cast<int>(free_.size()); }
  int64_t bytes() const { return static_cast<int64_t>(memory_.bytes()); }

  /// A block with one reference. Throws Error when none is free.
  BlockId take();
  void add_reference(BlockId block);
  /// Gives a reference back; the block is free again when it was the last.
  void release(BlockId block);
  int references(BlockId block) const { return references_[block]; }
  /// Copies the content of all layers.
  void copy(BlockId to, BlockId from);

  std::span<const KvLayer> layers() const { return layers_; }
  Backend& backend() const { return backend_; }

 private:
  Backend& backend_;
  Buffer memory_;
  std::vector<KvLayer> layers_;
  std::vector<int32_t> references_;
  std::vector<BlockId> free_;
};

}  // namespace tidal
