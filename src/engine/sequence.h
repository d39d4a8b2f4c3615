// One conversation: its tokens and where its K/V are.
#pragma once

#include <span>
#include <vector>

#include "engine/kv_pool.h"
#include "engine/sequence_states.h"
#include "engine/sequence_windows.h"
#include "engine/stretches.h"

namespace tidal {

/// Tokens that both texts begin with.
int common_prefix(std::span<const Token> a, std::span<const Token> b);

/// Tokens with their cached K/V. Move-only; gives its blocks back when destroyed. The pool must outlive it.
class Sequence {
 public:
  /// `capacity` tokens can be appended (by this sequence or its forks) before anything is allocated.
  explicit Sequence(KvPool& pool, int capacity = 0);
  /// Tokens whose K/V are in `blocks` [blocks_for(tokens)] already, shared with whoever holds these; the first `clean`
  /// positions hold what dense attention computes.
  /// `window_blocks`, likewise, of the pool's windows().
  Sequence(KvPool& pool, int capacity, std::span<const Token> tokens, std::span<const BlockId> blocks, int clean,
           std::span<const BlockId> window_blocks = {});
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  ~Sequence();

  /// Tokens in the cache.
  std::span<const Token> tokens() const { return tokens_; }
  int length() const { return static_cast<int>(tokens_.size()); }
  const KvPool& pool() const { return *pool_; }
  std::span<const BlockId> blocks() const { return blocks_; }
  /// Positions [0, clean()) hold what dense attention computes; later ones came from sparse attention (are polluted).
  int clean() const { return clean_; }

  /// Of hybrid models.
  SequenceStates& states() { return states_; }
  const SequenceStates& states() const { return states_; }
  /// Of models whose layers with a window keep it only.
  SequenceWindows& windows() { return windows_; }
  const SequenceWindows& windows() const { return windows_; }
  /// How clean tokens were computed.
  Stretches& stretches() { return stretches_; }
  const Stretches& stretches() const { return stretches_; }
  /// Whether a pass can begin at `position`, and nothing is to be computed again before.
  bool goes_on_at(int position) const { return begin_of_pass(position) == position; }
  /// Where a pass begins that writes from `first` on: there, or earlier, where its state or what is in its windows has
  /// to be computed again.
  int begin_of_pass(int first) const;

  /// A second sequence with the same content, sharing all blocks until either writes to one (copy on write).
  Sequence fork() const;
  /// Copies what it shares with others. Throws Error as reserve().
  void own_blocks();
  /// Forgets all positions from `length` on. 0 <= length <= length().
  void truncate(int length);

  /// Makes positions [length(), length() + more) writable. Throws Error when the pool is exhausted; then nothing has
  /// changed.
  void reserve(int more) { reserve(length(), more); }
  /// The same for positions [first, length() + more). 0 <= first <= length(). Of layers that keep their window only see
  /// SequenceWindows::reserve().
  void reserve(int first, int more);
  /// How many blocks of the pool reserve() would take, copies of shared ones included.
  int missing_blocks(int first, int more) const;
  /// Gives back the blocks that reserve() took and no token has come to use.
  void release_reserved();
  /// Records tokens whose K/V a forward pass has just written at the end. `dense`: by dense attention over clean cache.
  void append(std::span<const Token> tokens, bool dense);
  /// Records that a dense forward pass has just rewritten the K/V of positions [clean(), end). clean() <= end <=
  /// length().
  void mark_clean(int end) { clean_ = end; }

 private:
  bool shared(size_t block) const { return pool_->references(blocks_[block]) > 1; }
  void release_from(size_t first);

  KvPool* pool_;
  std::vector<Token> tokens_;
  std::vector<BlockId> blocks_;
  int clean_ = 0;
  SequenceStates states_;
  SequenceWindows windows_;
  Stretches stretches_;
};

}  // namespace tidal
