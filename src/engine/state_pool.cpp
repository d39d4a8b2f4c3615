#include "engine/state_pool.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {

void StatePool::make_room() {
  for (const auto& [holder, give] : holders_) {
    while (free_states() == 0 && give()) {
    }
  }
}

StateId StatePool::take() {
  make_room();
  if (!free_.empty()) {
    const StateId state = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(state)] = 1;
    return state;
  }
  if (free_states() == 0) fail("states of recurrent layers: all {} are in use", most_);
  memory_.push_back(backend_.allocate(bytes_, "states of recurrent layers"));
  references_.push_back(1);
  return static_cast<StateId>(memory_.size() - 1);
}

void StatePool::on_shortage(const void* holder, std::function<bool()> give) {
  const auto known =
      std::find_if(holders_.begin(), holders_.end(), [&](const auto& other) { return other.first == holder; });
  if (known != holders_.end() && give) {
    known->second = std::move(give);
  } else if (known != holders_.end()) {
    holders_.erase(known);
  } else if (give) {
    holders_.emplace_back(holder, std::move(give));
  }
}

void StatePool::release(StateId state) {
  if (--references_[static_cast<size_t>(state)] == 0) free_.push_back(state);
}

void StatePool::copy(StateId to, StateId from) {
  backend_.copy(memory_[static_cast<size_t>(to)].as<std::byte>(), memory_[static_cast<size_t>(from)].as<std::byte>(),
                bytes_);
}

}  // namespace tidal
