#include "engine/sequence.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace tidal {

int common_prefix(std::span<const Token> a, std::span<const Token> b) {
  const size_t most = std::min(a.size(), b.size());
  return static_cast<int>(std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(most), b.begin()).first -
                          a.begin());
}

Sequence::Sequence(KvPool& pool, int capacity) : pool_(&pool), states_(pool.states()), windows_(pool, capacity) {
  tokens_.reserve(capacity);
  blocks_.reserve(blocks_for(capacity));
}

Sequence::Sequence(KvPool& pool, int capacity, std::span<const Token> tokens, std::span<const BlockId> blocks,
                   int clean, std::span<const BlockId> window_blocks)
    : Sequence(pool, capacity) {
  tokens_.assign(tokens.begin(), tokens.end());
  blocks_.assign(blocks.begin(), blocks.end());
  clean_ = clean;
  for (const BlockId block : blocks_) pool_->add_reference(block);
  if (!window_blocks.empty()) windows_ = SequenceWindows(pool, capacity, window_blocks);
}

Sequence::Sequence(Sequence&& other) noexcept
    : pool_(other.pool_),
      tokens_(std::exchange(other.tokens_, {})),
      blocks_(std::exchange(other.blocks_, {})),
      clean_(std::exchange(other.clean_, 0)),
      states_(std::move(other.states_)),
      windows_(std::move(other.windows_)),
      stretches_(std::move(other.stretches_)) {}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this != &other) {
    release_from(0);
    pool_ = other.pool_;
    tokens_ = std::exchange(other.tokens_, {});
    blocks_ = std::exchange(other.blocks_, {});
    clean_ = std::exchange(other.clean_, 0);
    states_ = std::move(other.states_);
    windows_ = std::move(other.windows_);
    stretches_ = std::move(other.stretches_);
  }
  return *this;
}

Sequence::~Sequence() { release_from(0); }

Sequence Sequence::fork() const {
  Sequence copy(*pool_, static_cast<int>(tokens_.capacity()));
  copy.tokens_ = tokens_;
  copy.clean_ = clean_;
  copy.blocks_.assign(blocks_.begin(), blocks_.begin() + blocks_for(length()));
  for (const BlockId block : copy.blocks_) pool_->add_reference(block);
  copy.states_ = states_.fork();
  copy.windows_ = windows_.fork(length(), static_cast<int>(tokens_.capacity()));
  copy.stretches_ = stretches_;
  return copy;
}

void Sequence::truncate(int length) {
  if (length < 0 || length > this->length()) {
    fail("sequence: cannot truncate to {} tokens, it has {}", length, this->length());
  }
  stretches_.truncate(length, tokens_);
  tokens_.resize(length);
  clean_ = std::min(clean_, length);
  release_from(blocks_for(length));
  states_.truncate(length);
  windows_.truncate(length);
}

int Sequence::begin_of_pass(int first) const {
  if (pool_->windows()) {
    if (windows_.goes_on_at(first)) return first;
    // Clean tokens are computed again in the chunks that they were computed in.
    int begin = windows_.nearest(std::min(first, clean_));
    while (stretches_.begin(begin) != begin) begin = windows_.nearest(stretches_.begin(begin));
    return begin;
  }
  if (!pool_->states() || states_.position() == first) return first;
  return states_.nearest(std::min(first, clean_));
}

void Sequence::release_reserved() {
  release_from(static_cast<size_t>(blocks_for(length())));
  if (pool_->windows()) windows_.release_reserved(length());
}

int Sequence::missing_blocks(int first, int more) const {
  int needed = blocks_for(int64_t{length()} + more);
  if (const int begin = begin_of_pass(first); begin < first) {
    first = begin;
    if (pool_->windows()) needed = std::max(needed, blocks_for(stretches_.end(length())));
  }
  int missing = std::max(0, needed - static_cast<int>(blocks_.size()));
  const size_t end = std::min<size_t>(more > 0 || first < length() ? needed : 0, blocks_.size());
  for (size_t b = static_cast<size_t>(first / kBlockTokens); b < end; ++b) missing += shared(b);
  return missing;
}

void Sequence::reserve(int first, int more) {
  const int needed = blocks_for(int64_t{length()} + more);
  // Blocks that are written to and another sequence reads, too, become copies of one's own.
  const size_t begin = static_cast<size_t>(first / kBlockTokens);
  const size_t end = std::min<size_t>(more > 0 || first < length() ? needed : 0, blocks_.size());
  if (const int missing = missing_blocks(first, more); missing > pool_->free_blocks()) {
    fail("KV cache: {} more tokens need {} blocks of {} tokens, but only {} of {} are free", more, missing,
         kBlockTokens, pool_->free_blocks(), pool_->blocks());
  }
  pool_->make_room(missing_blocks(first, more));
  for (size_t b = begin; b < end; ++b) {
    if (!shared(b)) continue;
    const BlockId own = pool_->take();
    pool_->copy(own, blocks_[b]);
    pool_->release(std::exchange(blocks_[b], own));
  }
  while (static_cast<int>(blocks_.size()) < needed) blocks_.push_back(pool_->take());
}

void Sequence::own_blocks() {
  reserve(0, 0);
  windows_.own_blocks();
}

void Sequence::append(std::span<const Token> tokens, bool dense) {
  if (dense && clean_ == length()) clean_ += static_cast<int>(tokens.size());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

void Sequence::release_from(size_t first) {
  for (size_t i = first; i < blocks_.size(); ++i) pool_->release(blocks_[i]);
  blocks_.resize(std::min(first, blocks_.size()));
}

}  // namespace tidal
