#include "engine/state_pool.h"

#include "core/error.h"

namespace tidal {

StateId StatePool::take() {
  while (free_states() == 0 && give_ && give_()) {
  }
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

void StatePool::release(StateId state) {
  if (--references_[static_cast<size_t>(state)] == 0) free_.push_back(state);
}

void StatePool::copy(StateId to, StateId from) {
  backend_.copy(memory_[static_cast<size_t>(to)].as<std::byte>(), memory_[static_cast<size_t>(from)].as<std::byte>(),
                bytes_);
}

}  // namespace tidal
