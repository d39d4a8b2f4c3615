// Where blocks are, without a backend: memory is a number a slot.
#include "engine/kv_slots.h"

#include <gtest/gtest.h>

#include <map>

#include "support/random.h"

namespace tidal {
namespace {

/// Carries out what KvSlots says.
class Memory {
 public:
  Memory(int slots, int device_slots) : slots(slots, device_slots), content_(static_cast<size_t>(slots), -1) {}

  void take(BlockId block) {
    std::vector<KvSlots::Move> moves;
    slots.make_room(1, moves);
    carry_out(moves);
    slots.take(block);
    at(block) = -1;
  }
  void write(BlockId block, int value) {
    slots.write(block);
    at(block) = value;
  }
  void bring_back(BlockId block) {
    std::vector<KvSlots::Move> moves;
    slots.bring_back(block, moves);
    carry_out(moves);
  }
  void make_room(int count) {
    std::vector<KvSlots::Move> moves;
    slots.make_room(count, moves);
    carry_out(moves);
  }
  int& at(BlockId block) { return content_[static_cast<size_t>(slots.slot(block))]; }

  KvSlots slots;
  int moved = 0;

 private:
  void carry_out(const std::vector<KvSlots::Move>& moves) {
    for (const KvSlots::Move& move : moves) {
      const auto from = static_cast<size_t>(move.from), to = static_cast<size_t>(move.to);
      content_[to] = move.content ? content_[from] : -1;
      ++moved;
    }
  }

  std::vector<int> content_;
};

TEST(KvSlotsTest, NothingMovesWhileAllFits) {
  Memory memory(8, 8);
  EXPECT_FALSE(memory.slots);
  for (const BlockId block : {3, 0, 7}) {
    memory.take(block);
    EXPECT_EQ(memory.slots.slot(block), block);
    EXPECT_FALSE(memory.slots.on_host(block));
  }
  EXPECT_EQ(memory.moved, 0);
}

TEST(KvSlotsTest, WhatWasWrittenLongestAgoGoesToTheHost) {
  Memory memory(6, 2);
  for (BlockId block = 0; block < 4; ++block) {
    memory.take(block);
    memory.write(block, block);
    if (block == 1) memory.write(0, 0);  // so that 1 is older
  }
  EXPECT_TRUE(memory.slots.on_host(0));
  EXPECT_TRUE(memory.slots.on_host(1));
  EXPECT_FALSE(memory.slots.on_host(2));
  EXPECT_FALSE(memory.slots.on_host(3));
  EXPECT_EQ(memory.slots.slot(1), 2) << "the first slot of the host";
  EXPECT_EQ(memory.slots.slot(0), 3);
  EXPECT_EQ(memory.slots.blocks_on_host(), 2);
  EXPECT_EQ(memory.slots.host_slots_for(0), 2);
  EXPECT_EQ(memory.slots.host_slots_for(1), 3);
  EXPECT_EQ(memory.slots.host_slots_for(9), 4) << "there are no more";
  memory.slots.release(3);
  memory.slots.release(2);
  memory.bring_back(0);
  EXPECT_FALSE(memory.slots.on_host(0));
  EXPECT_EQ(memory.at(0), 0);
  EXPECT_EQ(memory.at(1), 1);
}

TEST(KvSlotsTest, ComesBackInPlaceOfWhatIsOlderOnly) {
  Memory memory(5, 2);
  for (BlockId block = 0; block < 3; ++block) {
    memory.take(block);
    memory.write(block, block);
  }
  memory.bring_back(0);
  EXPECT_TRUE(memory.slots.on_host(0)) << "both others are newer";
  memory.write(0, 10);
  memory.bring_back(0);
  EXPECT_FALSE(memory.slots.on_host(0));
  EXPECT_TRUE(memory.slots.on_host(1));
  for (BlockId block = 0; block < 3; ++block) EXPECT_EQ(memory.at(block), block == 0 ? 10 : block);
}

TEST(KvSlotsTest, AGenerationIsOfOneContentOnly) {
  Memory memory(4, 1);
  for (BlockId block = 0; block < 3; ++block) {
    memory.take(block);
    memory.write(block, block);
  }
  const uint32_t first = memory.slots.generation(0);
  EXPECT_NE(first, memory.slots.generation(1));
  memory.write(0, 5);
  EXPECT_NE(memory.slots.generation(0), first) << "written in place";
  const uint32_t second = memory.slots.generation(0);
  memory.bring_back(0);
  memory.make_room(1);
  ASSERT_TRUE(memory.slots.on_host(0));
  EXPECT_NE(memory.slots.generation(0), second) << "was away";
}

TEST(KvSlotsTest, AnythingInAnyOrderLosesNothing) {
  for (const int device : {1, 2, 7, 15}) {
    constexpr int kBlocks = 16;
    Memory memory(kBlocks, device);
    test::Random random(static_cast<uint64_t>(device));
    std::map<BlockId, int> used;                                // and what they hold
    std::map<std::pair<BlockId, uint32_t>, int> by_generation;  // of slots on the host
    for (int round = 0; round < 5000; ++round) {
      const auto block = static_cast<BlockId>(random.integer(0, kBlocks - 1));
      const int what = random.integer(0, 9);
      if (!used.count(block)) {
        memory.take(block);
        used[block] = -1;
      } else if (what <= 5) {
        memory.write(block, round);
        used[block] = round;
      } else if (what == 6) {
        memory.bring_back(block);
      } else if (what == 7) {
        memory.make_room(random.integer(1, device + 2));
      } else if (what == 8) {
        memory.slots.release(block);
        used.erase(block);
      }
      int host = 0;
      std::map<BlockId, BlockId> slots;
      for (const auto& [known, value] : used) {
        const BlockId slot = memory.slots.slot(known);
        ASSERT_TRUE(slots.emplace(slot, known).second) << "two blocks in one slot";
        ASSERT_EQ(memory.at(known), value) << round;
        if (!memory.slots.on_host(known)) continue;
        ++host;
        ASSERT_LT(slot - device, memory.slots.host_slots_for(0));
        const auto [seen, fresh] = by_generation.emplace(std::pair(slot, memory.slots.generation(known)), value);
        ASSERT_EQ(seen->second, value) << "a generation of another content";
      }
      ASSERT_EQ(memory.slots.blocks_on_host(), host);
    }
    EXPECT_GT(memory.moved, device) << "nothing moved, so this tests nothing";
  }
}

}  // namespace
}  // namespace tidal
