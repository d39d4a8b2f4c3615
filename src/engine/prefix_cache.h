// K/V of texts that have been computed, found again by their beginning.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/sequence.h"

namespace tidal {

/// A radix tree over blocks of tokens. It shares its blocks with the sequences that they came from; the least recently
/// used leaves go first. Not thread-safe.
class PrefixCache {
 public:
  /// The pool must outlive it.
  explicit PrefixCache(KvPool& pool);
  ~PrefixCache();

  /// A sequence that begins like `tokens`, as long as what is known of them but at most `most` tokens; empty when
  /// nothing is. `clean`: takes only K/V that dense attention computed.
  Sequence find(std::span<const Token> tokens, int most, bool clean, int capacity);
  /// Keeps the content of `sequence`, the last block that is partly filled included.
  void keep(const Sequence& sequence);
  /// Gives back blocks that nobody else holds until `blocks` of the pool are free; false when there are no more to
  /// give.
  bool make_room(int blocks);
  void clear();
  /// Blocks that it holds.
  int blocks() const;

 private:
  struct Node;
  KvPool& pool_;
  std::unique_ptr<Node> root_;
};

}  // namespace tidal
