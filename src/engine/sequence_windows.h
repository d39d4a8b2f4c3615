// What a sequence keeps of layers with a window: the blocks of its last positions, and of a few earlier ones.
#pragma once

#include <span>
#include <vector>

#include "engine/window_pool.h"

namespace tidal {

class KvPool;

/// The block table of layers whose cache keeps their window only. A pass can begin where all blocks before it are there
/// that its window reaches into: at the end and some positions before it, and at a few earlier ones that are saved.
/// What is needed elsewhere is computed again from one of these, or from the beginning. Unlike states, what is saved is
/// no copy: its blocks are left in the table. Move-only; empty, and nothing to call, where there are no such layers.
class SequenceWindows {
 public:
  static constexpr int kMostSaved = 4;
  /// So many positions can be taken back, rejected drafts among them, and nothing is computed again.
  static constexpr int kSlack = kBlockTokens;

  SequenceWindows(KvPool& pool, int capacity);
  /// A table that shares the blocks of somebody else, kNoBlock where there are none.
  SequenceWindows(KvPool& pool, int capacity, std::span<const BlockId> blocks);
  SequenceWindows(SequenceWindows&& other) noexcept;
  SequenceWindows& operator=(SequenceWindows&& other) noexcept;
  ~SequenceWindows() { clear(); }

  /// A second one that shares the blocks of the first `length` positions.
  SequenceWindows fork(int length, int capacity) const;

  /// [at most the sequence's blocks], kNoBlock where they are not kept.
  std::span<const BlockId> blocks() const { return blocks_; }
  /// The positions that are saved, ascending.
  std::span<const int> saved() const { return saved_; }
  /// Whether a pass can begin at this position.
  bool goes_on_at(int position) const;
  /// The last position up to `position` at which one can.
  int nearest(int position) const;

  /// A pass is to begin at `first`, where it can: nobody is given the blocks that this takes until advance() or
  /// let_go().
  void hold(int first);
  void let_go() { held_first_ = held_end_ = 0; }
  /// hold(), and makes [first, end) writable. Throws Error when the pool is exhausted; then the table is as it was.
  void reserve(int first, int end);
  /// Copies what it shares with others. Throws Error as reserve().
  void own_blocks();
  /// Gives back the blocks behind `length` positions that reserve() took, and lets go.
  void release_reserved(int length);
  /// After a pass that ended at `end`: gives back what lies before all windows.
  void advance(int end);
  /// Keeps what a pass needs that begins at `position`, or a few before it, until the pool runs out.
  void save(int position);
  /// Forgets all positions from `length` on.
  void truncate(int length);

 private:
  WindowPool& windows() const;
  bool has(size_t block) const { return block < blocks_.size() && blocks_[block] != kNoBlock; }
  /// The first block that a pass reads which begins at `position`.
  size_t first_read(int position) const;
  /// Returns whether there were any.
  bool release(size_t first, size_t end);
  /// Releases what is neither saved nor near the end nor held.
  void release_unneeded();
  bool shared(size_t block) const { return windows().references(blocks_[block]) > 1; }
  void make_own(size_t block);
  bool give(WindowPool::Shortage shortage);
  /// Has the pool ask this one.
  void announce();
  void clear();

  KvPool* pool_;
  std::vector<BlockId> blocks_;
  std::vector<int> saved_;
  size_t live_ = 0;                       // blocks from here on are near the end
  size_t held_first_ = 0, held_end_ = 0;  // blocks of hold()
};

}  // namespace tidal
