// Where a sequence of a hybrid model can go on: what its recurrent layers hold, behind its last token and behind a few
// earlier ones.
#pragma once

#include <span>
#include <vector>

#include "engine/state_pool.h"

namespace tidal {

/// The live state goes on with every pass and cannot go back. So some are saved on the way, and what a sequence needs
/// at an earlier position is computed again from the last saved one before that. Only states that dense attention
/// computed are saved. Move-only; empty, and nothing to call, for models without recurrent layers.
class SequenceStates {
 public:
  static constexpr int kMostSaved = 4;

  struct Saved {
    int position = 0;  ///< behind so many tokens
    StateId state = 0;
  };

  explicit SequenceStates(StatePool& pool) : pool_(&pool) {}
  SequenceStates(SequenceStates&& other) noexcept;
  SequenceStates& operator=(SequenceStates&& other) noexcept;
  ~SequenceStates() { clear(); }

  /// A second one that shares all states.
  SequenceStates fork() const;

  /// Tokens that the live state has seen; -1 when there is none. The beginning of a text needs none.
  int position() const { return position_; }
  std::span<const Saved> saved() const { return saved_; }
  /// The state saved at exactly this position; -1 where there is none.
  StateId saved_at(int position) const;
  /// The last position up to `position` from which a pass can go on: the live or a saved state's, or 0.
  int nearest(int position) const;
  /// Goes back to one of these.
  void return_to(int position);

  /// Makes sure that the live state is nobody else's, by a copy where it is shared; one is taken where there is none.
  /// Throws Error when there is no memory for it; then nothing has changed.
  void reserve();
  /// The live state, for a pass that goes on with it. Until advance() it counts as lost.
  float* begin();
  /// After the pass: it has seen so many tokens.
  void advance(int position) { position_ = position; }
  /// Keeps the live state, until the pool runs out of states. Where there are too many the one goes whose neighbours
  /// are nearest, in relation to how far back it is.
  void save();
  /// The same for a state of somebody else, which it then shares.
  void save(int position, StateId state);
  /// Keeps the live state until another one is marked: tokens behind it may be taken back, or computed again.
  void mark();
  /// Forgets all states behind more than `length` tokens.
  void truncate(int length);

 private:
  void clear();
  void drop_live();
  void unmark();
  void forget(size_t saved);
  void thin();
  /// Tells the pool whether there are saved states that it may ask for.
  void announce();

  StatePool* pool_;
  StateId live_ = -1;
  int position_ = -1;
  std::vector<Saved> saved_;  // by position
  int marked_ = -1;           // the position of one that is there for mark() alone
};

}  // namespace tidal
