// Where the blocks of a KV cache are: on the device while there is room, those written longest ago in host memory.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "backend/batch.h"

namespace tidal {

/// A slot for every block in use: [0, device_slots()) are device memory, the others host memory. A new block's is on
/// the device; where none is free there, those that were written longest ago move to the host. Knows nothing of memory:
/// who calls copies what moves, in the order of the moves.
class KvSlots {
 public:
  /// 1 <= device_slots. With as many as there are slots blocks never move, and a block's slot is its id.
  KvSlots(int slots, int device_slots);

  int device_slots() const { return device_slots_; }
  /// Whether some slots are host memory.
  explicit operator bool() const { return device_slots_ < slots_; }
  /// Of a block in use.
  BlockId slot(BlockId block) const { return *this ? places_[static_cast<size_t>(block)].slot : block; }
  bool on_host(BlockId block) const { return *this && slot(block) >= device_slots_; }
  /// Of a block on the host: a number that no other content of a slot has had.
  uint32_t generation(BlockId block) const { return places_[static_cast<size_t>(block)].generation; }
  /// Whether anything was written there since it was taken.
  bool has_content(BlockId block) const { return places_[static_cast<size_t>(block)].content; }
  int free_on_device() const { return static_cast<int>(free_device_.size()); }
  int blocks_on_host() const { return host_blocks_; }
  /// So many host slots, from the first on, are all that `more` further ones can make use of.
  int host_slots_for(int more) const;

  struct Move {
    BlockId block = 0;
    BlockId from = 0, to = 0;
    bool content = false;  ///< nothing to be copied without
  };
  /// Moves blocks to the host until `count` device slots are free, at most all of them: as far as there are host slots.
  void make_room(int count, std::vector<Move>& moves);
  /// Moves a block from the host to the device, in place of one that was written longer ago, where none is free there.
  /// Nothing where all are newer, or no slot is free at all.
  void bring_back(BlockId block, std::vector<Move>& moves);

  /// Gives a block that has none a slot. One must be free.
  void take(BlockId block);
  void release(BlockId block);
  /// Something is about to be written there.
  void write(BlockId block);

 private:
  struct Place {
    BlockId slot = -1;
    uint64_t written = 0;  // by clock_
    uint32_t generation = 0;
    bool content = false;
  };
  using FreeSlots = std::priority_queue<BlockId, std::vector<BlockId>, std::greater<>>;  // the lowest first

  Place& place(BlockId block) { return places_[static_cast<size_t>(block)]; }
  static BlockId pop(FreeSlots& slots);
  void leave(BlockId block);
  void enter(BlockId block, BlockId slot);
  void move(BlockId block, BlockId to, std::vector<Move>& moves);

  int slots_, device_slots_;
  std::vector<Place> places_;  // of blocks
  FreeSlots free_device_, free_host_;
  std::set<std::pair<uint64_t, BlockId>> on_device_;  // written, block
  int host_blocks_ = 0, host_end_ = 0;                // host slots in use; behind the last that ever was
  uint64_t clock_ = 0;
  uint32_t generations_ = 0;
};

}  // namespace tidal
