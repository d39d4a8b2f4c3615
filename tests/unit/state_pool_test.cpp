// The states of recurrent layers: who gives one up when there are no more.
#include "engine/state_pool.h"

#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/sequence_states.h"
#include "support/error.h"
#include "support/small_model.h"

namespace tidal {
namespace {

using test::error_of;

/// Host memory for so many allocations, and no passes.
class ShortOfMemory final : public Backend {
 public:
  explicit ShortOfMemory(int most) : most_(most) {}

  std::string_view name() const override { return "short of memory"; }
  int decode_rows() const override { return 1; }
  double read_stream() override { return 1; }
  Buffer allocate(size_t bytes, std::string_view what) override {
    if (most_-- <= 0) fail("out of memory: {} needs {} bytes", what, bytes);
    return memory_->allocate(bytes, what);
  }
  Weight upload(const Weight& host) override { return host; }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override { memory_->copy(to, from, bytes); }
  void write(std::byte* to, const std::byte* from, size_t bytes) override { memory_->write(to, from, bytes); }
  void read(std::byte* to, const std::byte* from, size_t bytes) override { memory_->read(to, from, bytes); }
  void sketch(KvLayer, std::span<const BlockId>) override { refuse(); }
  void reserve(const Hyperparameters&, int, int) override { refuse(); }
  void begin(const Hyperparameters&, const Batch&) override { refuse(); }
  void embed(const Weight&, const Batch&, Rows) override { refuse(); }
  void qkv(const Layer&, const Batch&, Rows, Rows, KvLayer) override { refuse(); }
  void attend(const Batch&, int, Rows, KvLayer, const Selection&, Rows, const Weight&) override { refuse(); }
  void gate(const Layer&, Rows, Rows) override { refuse(); }
  void project(const Layer&, Rows, Rows) override { refuse(); }
  void delta(const Layer&, const Batch&, int, Rows) override { refuse(); }
  void mlp(const Layer&, Rows) override { refuse(); }
  void experts(const Layer&, Rows) override { refuse(); }
  void logits(const Weight&, const Weight&, const Batch&, Rows, std::span<float>) override { refuse(); }

 private:
  static void refuse() { fail("this backend runs no passes"); }

  std::unique_ptr<Backend> memory_ = make_reference_backend();
  int most_;
};

class States : public testing::Test {
 protected:
  /// A sequence whose live state, behind `position` tokens, begins with this number.
  static SequenceStates live(StatePool& pool, int position) {
    SequenceStates states(pool);
    states.reserve();
    *states.begin() = static_cast<float>(position);
    states.advance(position);
    return states;
  }
  /// Goes on with the live state; what it begins with.
  static float go_on(SequenceStates& states) {
    states.reserve();
    const int position = states.position();
    const float first = *states.begin();
    states.advance(position + 1);
    return first;
  }
  static std::vector<int> positions(const SequenceStates& states) {
    std::vector<int> positions;
    for (const auto& [position, state] : states.saved()) positions.push_back(position);
    return positions;
  }

  ShortOfMemory backend_{3};
  StatePool pool_{backend_, test::small_hybrid(), 3};
  StatePool large_{backend_, test::small_hybrid(), 10};
};

TEST_F(States, WhatIsSavedIsGivenUpFromTheBeginning) {
  SequenceStates states = live(pool_, 64);
  for (const int position : {64, 65}) {
    states.save();
    EXPECT_EQ(go_on(states), 64) << position;
  }
  EXPECT_EQ(positions(states), (std::vector<int>{64, 65}));
  EXPECT_EQ(pool_.free_states(), 0);
  states.save();
  go_on(states);
  EXPECT_EQ(positions(states), (std::vector<int>{65, 66}));
}

TEST_F(States, TwoThatShareASavedStateBothGiveItUp) {
  SequenceStates first = live(pool_, 64);
  first.save();
  SequenceStates second = first.fork();
  EXPECT_EQ(go_on(first), 64);
  EXPECT_EQ(go_on(second), 64);
  EXPECT_EQ(pool_.free_states(), 0);
  SequenceStates third = live(pool_, 3);
  EXPECT_EQ(positions(first), (std::vector<int>{}));
  EXPECT_EQ(positions(second), (std::vector<int>{}));
  EXPECT_EQ(go_on(third), 3);
}

TEST_F(States, ALiveStateIsUnsharedWhereNoneIsLeftForACopy) {
  SequenceStates first = live(pool_, 1), second = live(pool_, 2), third = live(pool_, 64);
  // As a cache would: it lets go of a state that others hold only when that is the one wanted.
  std::optional<StateId> kept;
  pool_.on_shortage(&kept, [&](StateId wanted) {
    if (!kept || (pool_.references(*kept) > 1 && *kept != wanted)) return false;
    pool_.release(*std::exchange(kept, std::nullopt));
    return true;
  });
  third.save();
  kept = third.saved_at(64);
  pool_.add_reference(*kept);
  EXPECT_EQ(go_on(third), 64);
  EXPECT_EQ(positions(third), (std::vector<int>{}));
  EXPECT_FALSE(kept);
  pool_.on_shortage(&kept, {});
}

TEST_F(States, WithoutMemoryForMoreSavedOnesAreGivenUp) {
  SequenceStates states = live(large_, 64);
  for (int i = 0; i < 5; ++i) {
    states.save();
    EXPECT_EQ(go_on(states), 64) << i;
  }
  // Three are had.
  EXPECT_EQ(positions(states), (std::vector<int>{67, 68}));
  SequenceStates second = live(large_, 2), third = live(large_, 3);
  EXPECT_EQ(positions(states), (std::vector<int>{}));
  EXPECT_EQ(go_on(states), 64);
  EXPECT_EQ(go_on(second), 2);
  SequenceStates fourth(large_);
  EXPECT_TRUE(error_of([&] { fourth.reserve(); }).starts_with("out of memory: states of recurrent layers needs"));
  EXPECT_EQ(go_on(third), 3);
}

TEST_F(States, MarksReplaceEachOther) {
  ShortOfMemory backend(100);
  StatePool pool(backend, test::small_hybrid(), 100);
  SequenceStates states = live(pool, 64);
  states.save();
  for (const int position : {64, 70, 71, 72}) {
    while (states.position() < position) go_on(states);
    states.mark();
  }
  EXPECT_EQ(positions(states), (std::vector<int>{64, 72}));
  const SequenceStates fork = states.fork();
  // A state that is kept anyway needs no mark, and a mark that was cut off is none.
  states.truncate(70);
  states.return_to(64);
  states.mark();
  EXPECT_EQ(positions(states), (std::vector<int>{64}));
  EXPECT_EQ(positions(fork), (std::vector<int>{64, 72}));
  go_on(states);
  states.mark();
  states.return_to(64);
  states.mark();
  EXPECT_EQ(positions(states), (std::vector<int>{64}));
}

TEST_F(States, AMarkTakesNoPlaceOfTheLastThatAreKept) {
  ShortOfMemory backend(100);
  StatePool pool(backend, test::small_hybrid(), 100);
  SequenceStates states = live(pool, 64);
  while (states.position() < 1024) {
    if (states.position() % 256 == 0) states.save();
    if (states.position() % 5 == 0) states.mark();
    go_on(states);
  }
  EXPECT_EQ(positions(states), (std::vector<int>{256, 512, 768, 1020}));
}

}  // namespace
}  // namespace tidal
