// Blocks of the layers whose cache keeps their window only: handed out and reference counted, and asked for again where
// they run out.
#pragma once

#include <utility>
#include <vector>

#include "backend/batch.h"
#include "engine/holders.h"

namespace tidal {

/// Ids of blocks, each with its references.
class BlockIds {
 public:
  explicit BlockIds(int blocks);

  int blocks() const { return static_cast<int>(references_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  /// A block with one reference; one must be free.
  BlockId take();
  void add_reference(BlockId block) { ++references_[static_cast<size_t>(block)]; }
  /// Gives a reference back; the block is free again when it was the last.
  void release(BlockId block) {
    if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
  }
  int references(BlockId block) const { return references_[static_cast<size_t>(block)]; }

 private:
  std::vector<int32_t> references_;
  std::vector<BlockId> free_;
};

/// In block tables, where nothing is kept: a block of zeros that nobody writes to, since backends may touch what they
/// do not read.
inline constexpr BlockId kNoBlock = 0;

/// What Chunk::window_blocks are of, for all sequences. Whoever holds more than it needs for its next pass is asked to
/// give it up where blocks run out, so that a pass fails only where all together need more than there are.
class WindowPool {
 public:
  /// `blocks` with kNoBlock; 0: all layers keep the whole context. `window`: the largest of these layers, in positions.
  WindowPool(int blocks, int window);
  WindowPool(const WindowPool&) = delete;
  WindowPool& operator=(const WindowPool&) = delete;

  /// Whether there are such layers.
  explicit operator bool() const { return blocks_.blocks() > 0; }
  int window() const { return window_; }
  int blocks() const { return blocks_.blocks(); }
  int free_blocks() const { return blocks_.free(); }

  /// A block with one reference. Throws Error when there is none; make_room() makes some.
  BlockId take();
  void add_reference(BlockId block) { blocks_.add_reference(block); }
  void release(BlockId block) { blocks_.release(block); }
  int references(BlockId block) const { return blocks_.references(block); }
  /// Asks those who have called on_shortage(), the first one first, for what they have saved, then for what they would
  /// have to compute again, until `blocks` are free.
  void make_room(int blocks);

  enum class Shortage { Saved, All };
  /// `give()` lets go of references, of all that it can spare or of some; false when there are none. Empty: `holder` is
  /// asked no more.
  void on_shortage(const void* holder, Holders<Shortage>::Give give) { holders_.set(holder, std::move(give)); }

 private:
  BlockIds blocks_;
  int window_;
  Holders<Shortage> holders_;
};

}  // namespace tidal
