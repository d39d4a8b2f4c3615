// Memory of a KV cache that lies on the device and the host.
#include "backend/cuda/runtime/split_memory.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/runtime/device.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

class SplitMemory : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_cuda_device()) GTEST_SKIP() << "no CUDA device";
    open_device();
    if (const std::string problem = split_memory_problem(); !problem.empty()) GTEST_SKIP() << problem;
  }

  /// Every slot of a layer gets bytes of its own.
  static std::vector<std::byte> pattern(size_t bytes, int layer) {
    std::vector<std::byte> values(bytes);
    for (size_t i = 0; i < bytes; ++i) values[i] = static_cast<std::byte>(i / 64 * 7 + static_cast<size_t>(layer) * 31);
    return values;
  }
  /// The first `border` bytes apart: no copy is of both kinds of memory.
  static void write(std::byte* to, const std::vector<std::byte>& values, size_t border = 0) {
    const size_t first = std::min(border, values.size());
    ASSERT_EQ(cudaMemcpy(to, values.data(), first, cudaMemcpyDefault), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(to + first, values.data() + first, values.size() - first, cudaMemcpyDefault), cudaSuccess);
  }
  static std::vector<std::byte> read(const std::byte* from, size_t bytes, size_t border = 0) {
    std::vector<std::byte> values(bytes);
    EXPECT_EQ(cudaMemcpy(values.data(), from, border, cudaMemcpyDefault), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data() + border, from + border, bytes - border, cudaMemcpyDefault), cudaSuccess);
    return values;
  }
};

TEST_F(SplitMemory, SlotsFollowEachOtherAcrossTheBorder) {
  // 8 bits at a head size of 128 among them, whose slots divide no page.
  const KvRoom room{.slots = 300, .device_slots = 7, .slot_bytes = {32768, 17408, 4096}};
  SplitKvMemory memory(room, "KV cache");
  for (const int count : {1, 5, 293}) {
    memory.provide(count);
    const auto bytes = [&](int l, int slots) {
      return room.slot_bytes[static_cast<size_t>(l)] * static_cast<size_t>(slots);
    };
    for (int l = 0; l < 3; ++l) {
      write(memory.layer(static_cast<size_t>(l)), pattern(bytes(l, 7 + count), l), bytes(l, 7));
    }
    for (int l = 0; l < 3; ++l) {
      EXPECT_EQ(read(memory.layer(static_cast<size_t>(l)), bytes(l, 7 + count), bytes(l, 7)),
                pattern(bytes(l, 7 + count), l))
          << count;
    }
  }
}

TEST_F(SplitMemory, StagedSlotsAreSharedByLayersOfOneBuffer) {
  const KvRoom room{.slots = 100, .device_slots = 3, .slot_bytes = {16384, 16384, 16384, 16384}};
  SplitKvMemory memory(room, "KV cache");
  memory.provide(97);
  for (const int buffers : {2, 1}) {
    ASSERT_TRUE(memory.stage(90, buffers));
    EXPECT_EQ(memory.staged_slots(), 90);
    const size_t bytes = 90 * size_t{16384};
    const auto staged = [&](int l) {
      return memory.layer(static_cast<size_t>(l)) + static_cast<size_t>(memory.first_staged()) * 16384;
    };
    for (int l = 0; l < 4; ++l) {
      EXPECT_EQ(memory.index_of(memory.layer(static_cast<size_t>(l))), l);
      write(staged(l), pattern(bytes, l));
      EXPECT_EQ(read(staged(l), bytes), pattern(bytes, l));
    }
    EXPECT_EQ(read(staged(1), bytes), pattern(bytes, 3)) << "as the last of its buffer";
    EXPECT_EQ(read(staged(0), bytes), pattern(bytes, buffers == 2 ? 2 : 3));
  }
}

TEST_F(SplitMemory, CopiesGoAcrossPiecesOfHostMemory) {
  // Memory is made 64 MiB at a time: two slots of these are more.
  constexpr size_t kSlot = size_t{40} << 20;
  const KvRoom room{.slots = 7, .device_slots = 1, .slot_bytes = {kSlot}};
  SplitKvMemory memory(room, "KV cache");
  std::byte* const data = memory.layer(0);
  for (int count = 1; count <= 6; ++count) memory.provide(count);
  const std::vector<std::byte> values = pattern(6 * kSlot, 5);
  ASSERT_EQ(cudaMemcpy(data + kSlot, values.data(), values.size(), cudaMemcpyDefault), cudaSuccess);
  EXPECT_TRUE(read(data + kSlot, values.size()) == values);
  // As prefill has them copied: neighbours at once, by copy engines.
  ASSERT_TRUE(memory.stage(6, 1));
  std::byte* const staged = data + static_cast<size_t>(memory.first_staged()) * kSlot;
  const Stream stream = make_stream();
  ASSERT_EQ(cudaMemcpyAsync(staged, data + kSlot, values.size(), cudaMemcpyDefault, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_TRUE(read(staged, values.size()) == values);
  // And as blocks move: from the device to a slot that lies in two pieces.
  ASSERT_EQ(cudaMemcpyAsync(data, staged + 2 * kSlot, kSlot, cudaMemcpyDefault, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(data + 2 * kSlot, data, kSlot, cudaMemcpyDefault, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const auto third = values.begin() + static_cast<ptrdiff_t>(2 * kSlot);
  EXPECT_TRUE(read(data + 2 * kSlot, kSlot) == std::vector<std::byte>(third, third + static_cast<ptrdiff_t>(kSlot)));
}

TEST_F(SplitMemory, ItsEndWaitsForNobody) {
  // While its thread is at work, and with copies under way.
  const KvRoom room{.slots = 500, .device_slots = 4, .slot_bytes = {size_t{1} << 20, size_t{1} << 20}};
  const Stream stream = make_stream();
  for (int i = 0; i < 3; ++i) {
    SplitKvMemory memory(room, "KV cache");
    memory.provide(1);
    std::byte* const data = memory.layer(1);
    ASSERT_EQ(cudaMemcpyAsync(data + (size_t{4} << 20), data, size_t{1} << 20, cudaMemcpyDefault, stream), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
}

TEST_F(SplitMemory, TooMuchIsAnError) {
  const KvRoom room{.slots = 2, .device_slots = 1, .slot_bytes = {size_t{1} << 42}};
  try {
    const SplitKvMemory memory(room, "KV cache");
    FAIL() << "4 TiB were there";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("MiB for the KV cache"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tidal::cuda
