// States of recurrent layers: fixed-size pieces of the backend's memory, handed out and reference counted.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/holders.h"

namespace tidal {

using StateId = int32_t;

/// What Chunk::state points to, for all sequences. A state that several hold is not written to: whoever goes on takes
/// another one and copies it.
class StatePool {
 public:
  /// At most `states` of them, whose memory is had when they are first used. None for a model without recurrent layers.
  StatePool(Backend& backend, const Hyperparameters& hp, int states)
      : backend_(backend),
        architecture_(hp.architecture),
        bytes_(static_cast<size_t>(hp.state_bytes())),
        most_(bytes_ > 0 ? states : 0) {}
  StatePool(const StatePool&) = delete;
  StatePool& operator=(const StatePool&) = delete;

  /// Whether the model has recurrent layers.
  explicit operator bool() const { return bytes_ > 0; }
  const std::string& architecture() const { return architecture_; }
  int states() const { return most_; }
  int free_states() const { return most_ - static_cast<int>(memory_.size() - free_.size()); }

  /// A state with one reference that holds anything. Where none is free, or there is no memory for one, those who have
  /// called on_shortage() are asked, the first one first. Throws Error when they have none to give either.
  StateId take();
  /// The same for who holds a reference to `state` and is to write to it: `state` itself, where nobody else holds it,
  /// or another one with a copy of its content, in exchange for the reference.
  StateId own(StateId state);
  void add_reference(StateId state) { ++references_[static_cast<size_t>(state)]; }
  /// Gives a reference back; the state is free again when it was the last.
  void release(StateId state);
  int references(StateId state) const { return references_[static_cast<size_t>(state)]; }
  void copy(StateId to, StateId from);
  float* data(StateId state) const { return memory_[static_cast<size_t>(state)].as<float>(); }

  /// `give(wanted)` lets go of a reference, to `wanted` too though others hold that (-1: to none of them in
  /// particular); false when it has none to give. Empty: `holder` is asked no more.
  void on_shortage(const void* holder, Holders<StateId>::Give give) { holders_.set(holder, std::move(give)); }

 private:
  /// Until free_ is not empty, or `state` has only one reference; -1 where it is of no account.
  void make_room(StateId state);

  Backend& backend_;
  std::string architecture_;
  size_t bytes_;
  int most_;
  std::vector<Buffer> memory_;
  std::vector<int32_t> references_;
  std::vector<StateId> free_;
  Holders<StateId> holders_;
};

}  // namespace tidal
