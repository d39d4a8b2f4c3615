#include "engine/sequence_states.h"

#include <algorithm>
#include <utility>

namespace tidal {

SequenceStates::SequenceStates(SequenceStates&& other) noexcept
    : pool_(other.pool_),
      live_(std::exchange(other.live_, -1)),
      position_(std::exchange(other.position_, -1)),
      saved_(std::exchange(other.saved_, {})),
      marked_(std::exchange(other.marked_, -1)),
      stretches_(std::exchange(other.stretches_, {})) {
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
    stretches_ = std::exchange(other.stretches_, {});
    other.announce();
    announce();
  }
  return *this;
}

SequenceStates SequenceStates::fork() const {
  SequenceStates copy(*pool_);
  copy.stretches_ = stretches_;
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
  const auto cost = [&](size_t i) {
    const int before = i == 0 ? 0 : saved_[i - 1].position;
    const int gap = saved_[i + 1].position - before;
    return static_cast<double>(gap) / (saved_.back().position - saved_[i].position);
  };
  size_t cheapest = 0;
  for (size_t i = 1; i + 1 < saved_.size(); ++i) {
    if (cost(i) < cost(cheapest)) cheapest = i;
  }
  forget(cheapest);
}

void SequenceStates::truncate(int length) {
  if (position_ > length) drop_live();
  while (!saved_.empty() && saved_.back().position > length) forget(saved_.size() - 1);
  while (!stretches_.empty() && stretches_.back().end > length) {
    const int before = stretches_.size() > 1 ? stretches_[stretches_.size() - 2].end : 0;
    if (before < length) {
      stretches_.back().end = length;
      break;
    }
    stretches_.pop_back();
  }
}

int SequenceStates::rows_again(int position, int most, int decode_rows) const {
  const auto stretch = std::upper_bound(stretches_.begin(), stretches_.end(), position,
                                        [](int value, const Stretch& other) { return value < other.end; });
  if (stretch == stretches_.end()) return most;
  const int rows = std::min(most, stretch->end - position);
  return stretch->decoded ? std::min(rows, decode_rows) : rows;
}

void SequenceStates::record(int position, int end, int decode_rows) {
  if (!stretches_.empty() && end <= stretches_.back().end) return;
  const bool decoded = end - position <= decode_rows;
  while (!stretches_.empty() && stretches_.back().end > position) {
    const int before = stretches_.size() > 1 ? stretches_[stretches_.size() - 2].end : 0;
    if (before < position) {
      stretches_.back().end = position;
      break;
    }
    stretches_.pop_back();
  }
  if (decoded && !stretches_.empty() && stretches_.back().decoded) {
    stretches_.back().end = end;
  } else {
    stretches_.push_back({end, decoded});
  }
}

void SequenceStates::drop_live() {
  if (live_ >= 0) pool_->release(live_);
  live_ = position_ = -1;
}

void SequenceStates::clear() {
  drop_live();
  while (!saved_.empty()) forget(saved_.size() - 1);
  stretches_.clear();
  announce();
}

}  // namespace tidal
