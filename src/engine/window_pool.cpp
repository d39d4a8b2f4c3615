#include "engine/window_pool.h"

#include "core/error.h"

namespace tidal {

BlockIds::BlockIds(int blocks) : references_(static_cast<size_t>(blocks), 0) {
  // Handed out from the back: the first sequence gets ascending ids, which neighbours in memory.
  for (BlockId block = blocks; block-- > 0;) free_.push_back(block);
}

BlockId BlockIds::take() {
  const BlockId block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

WindowPool::WindowPool(int blocks, int window) : blocks_(blocks), window_(window) {
  if (blocks > 0) blocks_.take();  // kNoBlock
}

BlockId WindowPool::take() {
  if (free_blocks() == 0) fail("KV cache: all {} blocks of layers with a window are in use", blocks());
  return blocks_.take();
}

void WindowPool::make_room(int blocks) {
  for (const Shortage shortage : {Shortage::Saved, Shortage::All}) {
    holders_.ask(shortage, [&] { return free_blocks() >= blocks; });
  }
}

}  // namespace tidal
