#include "engine/sequence_windows.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "engine/kv_pool.h"
#include "engine/saved_positions.h"

namespace tidal {

SequenceWindows::SequenceWindows(KvPool& pool, int capacity) : pool_(&pool) {
  if (!windows()) return;
  blocks_.reserve(static_cast<size_t>(blocks_for(capacity)));
  saved_.reserve(kMostSaved + 1);
  announce();
}

SequenceWindows::SequenceWindows(KvPool& pool, int capacity, std::span<const BlockId> blocks)
    : SequenceWindows(pool, capacity) {
  if (!windows()) return;
  blocks_.assign(blocks.begin(), blocks.end());
  for (const BlockId block : blocks_) {
    if (block != kNoBlock) windows().add_reference(block);
  }
}

SequenceWindows::SequenceWindows(SequenceWindows&& other) noexcept
    : pool_(other.pool_),
      blocks_(std::exchange(other.blocks_, {})),
      saved_(std::exchange(other.saved_, {})),
      live_(std::exchange(other.live_, 0)) {
  announce();
}

SequenceWindows& SequenceWindows::operator=(SequenceWindows&& other) noexcept {
  if (this != &other) {
    clear();
    pool_ = other.pool_;
    blocks_ = std::exchange(other.blocks_, {});
    saved_ = std::exchange(other.saved_, {});
    live_ = std::exchange(other.live_, 0);
    announce();
  }
  return *this;
}

SequenceWindows SequenceWindows::fork(int length, int capacity) const {
  const auto count = std::min(blocks_.size(), static_cast<size_t>(blocks_for(length)));
  SequenceWindows copy(*pool_, capacity, blocks().first(count));
  copy.saved_.assign(saved_.begin(), saved_.end());
  copy.live_ = live_;
  return copy;
}

WindowPool& SequenceWindows::windows() const { return pool_->windows(); }

void SequenceWindows::announce() {
  if (!windows()) return;
  windows().on_shortage(this, [this](WindowPool::Shortage shortage) { return give(shortage); });
}

size_t SequenceWindows::first_read(int position) const {
  return static_cast<size_t>(std::max(0, position - windows().window() + 1) / kBlockTokens);
}

bool SequenceWindows::goes_on_at(int position) const {
  for (size_t b = first_read(position); b < static_cast<size_t>(blocks_for(position)); ++b) {
    if (!has(b)) return false;
  }
  return true;
}

int SequenceWindows::nearest(int position) const {
  while (position > 0) {
    // Whatever reaches behind the last block that is missing needs it, too.
    const size_t first = first_read(position);
    size_t end = static_cast<size_t>(blocks_for(position));
    while (end > first && has(end - 1)) --end;
    if (end == first) return position;
    position = static_cast<int>(end - 1) * kBlockTokens;
  }
  return 0;
}

void SequenceWindows::hold(int first) {
  if (!windows()) return;
  let_go();
  if (!goes_on_at(first)) return;
  held_first_ = first_read(first);
  held_end_ = static_cast<size_t>(blocks_for(first));
}

void SequenceWindows::reserve(int first, int end) {
  if (!windows()) return;
  held_first_ = first_read(first);
  held_end_ = static_cast<size_t>(blocks_for(end));
  if (blocks_.size() < held_end_) blocks_.resize(held_end_, kNoBlock);
  const auto missing = [&] {
    int count = 0;
    for (auto b = static_cast<size_t>(first / kBlockTokens); b < held_end_; ++b) count += !has(b) || shared(b);
    return count;
  };
  windows().make_room(missing());
  if (const int needed = missing(); needed > windows().free_blocks()) {
    fail("KV cache: a pass over {} tokens needs {} blocks of layers with a window, but only {} of {} are free",
         end - first, needed, windows().free_blocks(), windows().blocks());
  }
  for (auto b = static_cast<size_t>(first / kBlockTokens); b < held_end_; ++b) {
    if (has(b)) {
      make_own(b);
    } else {
      blocks_[b] = windows().take();
    }
  }
}

void SequenceWindows::make_own(size_t block) {
  if (!shared(block)) return;
  const BlockId own = windows().take();
  pool_->copy_window(own, blocks_[block]);
  windows().release(std::exchange(blocks_[block], own));
}

void SequenceWindows::own_blocks() {
  if (!windows()) return;
  hold(static_cast<int>(blocks_.size()) * kBlockTokens);
  windows().make_room(static_cast<int>(std::count_if(blocks_.begin(), blocks_.end(), [&](BlockId block) {
    return block != kNoBlock && windows().references(block) > 1;
  })));
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (has(b)) make_own(b);
  }
  let_go();
}

bool SequenceWindows::release(size_t first, size_t end) {
  bool any = false;
  for (size_t b = first; b < std::min(end, blocks_.size()); ++b) {
    if (!has(b)) continue;
    windows().release(std::exchange(blocks_[b], kNoBlock));
    any = true;
  }
  return any;
}

void SequenceWindows::release_reserved(int length) {
  let_go();
  const auto end = static_cast<size_t>(blocks_for(length));
  if (blocks_.size() <= end) return;
  release(end, blocks_.size());
  blocks_.resize(end);
}

void SequenceWindows::release_unneeded() {
  for (size_t b = 0; b < std::min(live_, blocks_.size()); ++b) {
    if (!has(b) || (b >= held_first_ && b < held_end_)) continue;
    const bool saved = std::any_of(saved_.begin(), saved_.end(), [&](int position) {
      return b >= first_read(position - kSlack) && b < static_cast<size_t>(blocks_for(position));
    });
    if (!saved) release(b, b + 1);
  }
}

void SequenceWindows::advance(int end) {
  if (!windows()) return;
  let_go();
  live_ = first_read(end - kSlack);
  release_unneeded();
}

void SequenceWindows::save(int position) {
  if (!windows() || position == 0 || !goes_on_at(position)) return;
  const auto place = std::lower_bound(saved_.begin(), saved_.end(), position);
  if (place != saved_.end() && *place == position) return;
  saved_.insert(place, position);
  if (saved_.size() <= kMostSaved) return;
  saved_.erase(saved_.begin() + static_cast<ptrdiff_t>(least_missed(saved_)));
  release_unneeded();
}

void SequenceWindows::truncate(int length) {
  if (!windows()) return;
  release_reserved(length);
  while (!saved_.empty() && saved_.back() > length) saved_.pop_back();
  live_ = std::min(live_, first_read(length - kSlack));
}

bool SequenceWindows::give(WindowPool::Shortage shortage) {
  if (shortage == WindowPool::Shortage::Saved) {
    if (saved_.empty()) return false;
    saved_.erase(saved_.begin());
    release_unneeded();
    return true;
  }
  const bool before = release(0, held_first_), behind = release(held_end_, blocks_.size());
  return before || behind;
}

void SequenceWindows::clear() {
  if (!windows()) return;
  release(0, blocks_.size());
  blocks_.clear();
  saved_.clear();
  let_go();
  windows().on_shortage(this, {});
}

}  // namespace tidal
