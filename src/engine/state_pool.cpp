#include "engine/state_pool.h"

#include <optional>

#include "core/error.h"

namespace tidal {

void StatePool::make_room(StateId state) {
  const auto enough = [&] { return !free_.empty() || (state >= 0 && references(state) == 1); };
  if (enough()) return;
  std::optional<Error> short_of_memory;
  if (static_cast<int>(memory_.size()) < most_) {
    try {
      memory_.push_back(backend_.allocate(bytes_, "states of recurrent layers"));
      free_.push_back(static_cast<StateId>(references_.size()));
      references_.push_back(0);
      return;
    } catch (const Error& error) {
      short_of_memory = error;
    }
  }
  for (const StateId wanted : {-1, state}) holders_.ask(wanted, enough);  // `state` last of all
  if (enough()) return;
  if (short_of_memory) throw Error(*short_of_memory);
  fail("states of recurrent layers: all {} are in use", most_);
}

StateId StatePool::take() {
  make_room(-1);
  const StateId state = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(state)] = 1;
  return state;
}

StateId StatePool::own(StateId state) {
  make_room(state);
  if (references(state) == 1) return state;
  const StateId copied = take();
  copy(copied, state);
  release(state);
  return copied;
}

void StatePool::release(StateId state) {
  if (--references_[static_cast<size_t>(state)] == 0) free_.push_back(state);
}

void StatePool::copy(StateId to, StateId from) {
  backend_.copy(memory_[static_cast<size_t>(to)].as<std::byte>(), memory_[static_cast<size_t>(from)].as<std::byte>(),
                bytes_);
}

}  // namespace tidal
