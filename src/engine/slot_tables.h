// The block tables of a pass, as backends see them.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kv_pool.h"

namespace tidal {

/// Where the blocks of a pass' chunks are. Chunks point into it until the next clear().
class SlotTables {
 public:
  void clear() { used_ = 0; }
  /// Sets blocks and generations of a chunk whose sequence has these blocks. Nothing may move in the pool from here on.
  void set(const KvPool& pool, std::span<const BlockId> blocks, Chunk& chunk) {
    if (!pool.moves()) {
      chunk.blocks = blocks;
      return;
    }
    if (used_ == tables_.size()) tables_.emplace_back();
    Table& table = tables_[used_++];
    table.slots.clear();
    table.generations.clear();
    bool any = false;
    for (const BlockId block : blocks) {
      const bool host = pool.on_host(block);
      table.slots.push_back(pool.slot(block));
      table.generations.push_back(host ? pool.generation(block) : 0);
      any = any || host;
    }
    chunk.blocks = table.slots;
    if (any) chunk.generations = table.generations;
  }

 private:
  struct Table {
    std::vector<BlockId> slots;
    std::vector<uint32_t> generations;
  };

  std::vector<Table> tables_;  // their memory stays where it is
  size_t used_ = 0;
};

}  // namespace tidal
