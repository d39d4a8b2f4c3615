#include "engine/kv_slots.h"

#include <algorithm>

namespace tidal {

KvSlots::KvSlots(int slots, int device_slots) : slots_(slots), device_slots_(std::min(device_slots, slots)) {
  if (!*this) return;
  places_.resize(static_cast<size_t>(slots));
  for (BlockId slot = 0; slot < slots; ++slot) (slot < device_slots_ ? free_device_ : free_host_).push(slot);
}

int KvSlots::host_slots_for(int more) const {
  return std::min(slots_ - device_slots_, std::max(host_end_, host_blocks_ + more));
}

BlockId KvSlots::pop(FreeSlots& slots) {
  const BlockId slot = slots.top();
  slots.pop();
  return slot;
}

void KvSlots::leave(BlockId block) {
  Place& from = place(block);
  if (from.slot < device_slots_) {
    on_device_.erase({from.written, block});
    free_device_.push(from.slot);
  } else {
    --host_blocks_;
    free_host_.push(from.slot);
  }
  from.slot = -1;
}

void KvSlots::enter(BlockId block, BlockId slot) {
  Place& to = place(block);
  to.slot = slot;
  if (slot < device_slots_) {
    on_device_.emplace(to.written, block);
    return;
  }
  ++host_blocks_;
  host_end_ = std::max(host_end_, slot - device_slots_ + 1);
  to.generation = ++generations_;
}

void KvSlots::move(BlockId block, BlockId to, std::vector<Move>& moves) {
  moves.push_back({block, place(block).slot, to, place(block).content});
  leave(block);
  enter(block, to);
}

void KvSlots::make_room(int count, std::vector<Move>& moves) {
  if (!*this) return;
  count = std::min(count, device_slots_);
  while (free_on_device() < count && !free_host_.empty()) {
    const BlockId block = on_device_.begin()->second;
    move(block, pop(free_host_), moves);
  }
}

void KvSlots::bring_back(BlockId block, std::vector<Move>& moves) {
  if (!on_host(block)) return;
  if (free_device_.empty()) {
    const auto [written, oldest] = *on_device_.begin();
    if (written >= place(block).written || free_host_.empty()) return;
    move(oldest, pop(free_host_), moves);
  }
  move(block, pop(free_device_), moves);
}

void KvSlots::take(BlockId block) {
  if (!*this) return;
  place(block).written = ++clock_;
  place(block).content = false;
  enter(block, pop(free_device_.empty() ? free_host_ : free_device_));
}

void KvSlots::release(BlockId block) {
  if (*this) leave(block);
}

void KvSlots::write(BlockId block) {
  if (!*this) return;
  Place& there = place(block);
  const bool device = there.slot < device_slots_;
  if (device) on_device_.erase({there.written, block});
  there.written = ++clock_;
  there.content = true;
  if (device) {
    on_device_.emplace(there.written, block);
  } else {
    there.generation = ++generations_;
  }
}

}  // namespace tidal
