#include "engine/sequence_states.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/saved_positions.h"

namespace tidal {

SequenceStates::SequenceStates(SequenceStates&& other) noexcept
    : pool_(other.pool_),
      live_(std::exchange(other.live_, -1)),
      position_(std::exchange(other.position_, -1)),
      saved_(std::exchange(other.saved_, {})),
      marked_(std::exchange(other.marked_, -1)) {
  other.announce();
  announce();
}

SequenceStates& SequenceStates::operator=(SequenceStates&& other) noexcept {
  if (this != &other) {
    clear();
    pool_ = other.pool_;
    live_ = std::exchange(other.live_, -1);
    position_ = std::exchange(other.position_, -1);
    saved_ = std::exchange(other.saved_, {});
    marked_ = std::exchange(other.marked_, -1);
    other.announce();
    announce();
  }
  return *this;
}

SequenceStates SequenceStates::fork() const {
  SequenceStates copy(*pool_);
  copy.saved_ = saved_;
  copy.marked_ = marked_;
  for (const Saved& saved : saved_) pool_->add_reference(saved.state);
  copy.announce();
  if (position_ >= 0) {
    copy.live_ = live_;
    copy.position_ = position_;
    pool_->add_reference(live_);
  }
  return copy;
}

int SequenceStates::nearest(int position) const {
  int nearest = position_ <= position ? std::max(position_, 0) : 0;
  for (const Saved& saved : saved_) {
    if (saved.position <= position) nearest = std::max(nearest, saved.position);
  }
  return nearest;
}

StateId SequenceStates::saved_at(int position) const {
  const auto found =
      std::find_if(saved_.begin(), saved_.end(), [&](const Saved& saved) { return saved.position == position; });
  return found == saved_.end() ? -1 : found->state;
}

void SequenceStates::return_to(int position) {
  if (position == position_) return;
  drop_live();
  const StateId state = saved_at(position);
  if (state < 0) return;  // the beginning
  pool_->add_reference(state);
  live_ = state;
  position_ = position;
}

void SequenceStates::reserve() { live_ = live_ < 0 ? pool_->take() : pool_->own(live_); }

float* SequenceStates::begin() {
  position_ = -1;
  return pool_->data(live_);
}

void SequenceStates::save() {
  if (position_ > 0) save(position_, live_);
}

void SequenceStates::save(int position, StateId state) {
  const auto place = std::lower_bound(saved_.begin(), saved_.end(), position,
                                      [](const Saved& saved, int value) { return saved.position < value; });
  if (place != saved_.end() && place->position == position) {
    if (marked_ == position) marked_ = -1;
    return;
  }
  saved_.insert(place, {position, state});
  pool_->add_reference(state);
  if (saved_.size() > kMostSaved) thin();
  announce();
}

void SequenceStates::mark() {
  unmark();
  if (position_ <= 0 || saved_at(position_) >= 0) return;
  save();
  marked_ = position_;
}

void SequenceStates::unmark() {
  for (size_t i = 0; i < saved_.size(); ++i) {
    if (saved_[i].position == marked_) return forget(i);
  }
}

void SequenceStates::forget(size_t saved) {
  if (saved_[saved].position == marked_) marked_ = -1;
  pool_->release(saved_[saved].state);
  saved_.erase(saved_.begin() + static_cast<ptrdiff_t>(saved));
}

void SequenceStates::announce() {
  if (saved_.empty()) return pool_->on_shortage(this, {});
  pool_->on_shortage(this, [this](StateId) {
    if (saved_.empty()) return false;
    forget(0);
    return true;
  });
}

void SequenceStates::thin() {
  std::array<int, kMostSaved + 1> positions = {};
  std::transform(saved_.begin(), saved_.end(), positions.begin(), [](const Saved& saved) { return saved.position; });
  forget(least_missed(positions));
}

void SequenceStates::truncate(int length) {
  if (position_ > length) drop_live();
  while (!saved_.empty() && saved_.back().position > length) forget(saved_.size() - 1);
}

void SequenceStates::drop_live() {
  if (live_ >= 0) pool_->release(live_);
  live_ = position_ = -1;
}

void SequenceStates::clear() {
  drop_live();
  while (!saved_.empty()) forget(saved_.size() - 1);
  announce();
}

}  // namespace tidal
