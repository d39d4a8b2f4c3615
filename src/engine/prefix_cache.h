// K/V of texts that have been computed, found again by their beginning.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/sequence.h"
#include "engine/session_store.h"

namespace tidal {

/// A radix tree over blocks of tokens. It shares its blocks with the sequences that they came from; the least recently
/// used leaves go first, to disk where there is a store. Of hybrid models it keeps the states that were saved at ends
/// of blocks, too, and finds nothing but what ends at one of them; where layers keep their window only, the blocks of
/// windows that a sequence has, and finds what ends behind a whole window. Not thread-safe.
class PrefixCache {
 public:
  /// The pool must outlive it, and the store, which may be null.
  explicit PrefixCache(KvPool& pool, SessionStore* store = nullptr);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  /// A sequence that begins like `tokens`, as long as what is known of them but at most `most` tokens; empty when
  /// nothing is. What the store knows beyond memory is read first, where there is room for it. It may end within a
  /// block, which it copies when it writes there. `clean`: takes only K/V that dense attention computed. `capacity` as
  /// Sequence's.
  Sequence find(std::span<const Token> tokens, int most, bool clean, int capacity);
  /// Keeps the content of `sequence`, the last block that is partly filled included. Where the same tokens are known
  /// already, the K/V with more clean positions stay.
  void keep(const Sequence& sequence) { keep(sequence, sequence.length()); }
  /// Keeps its first `length` tokens, at most sequence.length().
  void keep(const Sequence& sequence, int length);
  /// Gives back blocks that nobody else holds until `blocks` of the pool are free; false when there are no more to
  /// give.
  bool make_room(int blocks);
  /// Writes to the store what is not there; nothing without one.
  void save();
  /// Forgets everything in memory.
  void clear();
  /// Blocks that it holds.
  int blocks() const { return blocks_; }
  /// Those of them that nobody else holds. Looks at every block.
  int reclaimable() const;

 private:
  struct Node;
  struct Match;
  static Match best_match(const Node& node, std::span<const Token> tokens, bool clean);
  /// Makes `node` and its ancestors the last ones used.
  void touch(Node* node);
  void insert(Node* parent, std::span<const Token> tokens, BlockId block, BlockId window, int clean);
  /// Another block of windows in place of the node's; kNoBlock: none.
  void set_window(Node& node, BlockId window);
  void remove(Node* leaf);
  void remove_below(Node* node);
  /// Lets go of the state not used for longest of those that nobody else holds, `wanted` counted among them; false when
  /// there is none.
  bool give_state(StateId wanted);
  /// The same with blocks of windows.
  bool give_window();
  Sequence find_in_memory(std::span<const Token> tokens, bool clean, int capacity);
  void restore(std::span<const Token> tokens, bool clean);
  void save(Node* leaf);

  KvPool& pool_;
  SessionStore* store_;
  std::unique_ptr<Node> root_;  // without a block; also the head of the ring of nodes by last use
  int blocks_ = 0;
  uint64_t touches_ = 0;
};

}  // namespace tidal
