// Blocks that are filled before anybody holds them.
#pragma once

#include <span>
#include <vector>

#include "engine/kv_pool.h"

namespace tidal {

/// Blocks of the pool while they are filled: given back at the end, whatever that is.
class TakenBlocks {
 public:
  explicit TakenBlocks(KvPool& pool) : pool_(pool) {}
  ~TakenBlocks() {
    for (const BlockId block : blocks_) pool_.release(block);
  }
  TakenBlocks(const TakenBlocks&) = delete;
  TakenBlocks& operator=(const TakenBlocks&) = delete;

  /// Throws Error where there are not so many, or no memory for them.
  std::span<const BlockId> take(int count) {
    const size_t before = blocks_.size();
    for (int i = 0; i < count; ++i) blocks_.push_back(pool_.take());
    return std::span(blocks_).subspan(before);
  }

 private:
  KvPool& pool_;
  std::vector<BlockId> blocks_;
};

}  // namespace tidal
