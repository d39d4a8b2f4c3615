// Rows of an 8-bit cache against ggml's q8_0 and against what they promise.
#include "backend/kv_row.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
const std::vector<int> kDims = {16, 32, 48, 64, 80, 96, 112, 128, 256, 512};

struct Row {
  explicit Row(int dim) : layout{KvType::Q8, dim}, bytes(static_cast<size_t>(layout.bytes()), std::byte{0xa5}) {}

  void write(const std::vector<float>& elements) {
    write_kv_row(layout, elements.data(), elements.data() + layout.head_dim, bytes.data());
  }
  std::vector<float> read() const {
    std::vector<float> elements(size_t{2} * layout.head_dim);
    read_kv_row(layout, bytes.data(), elements.data(), elements.data() + layout.head_dim);
    return elements;
  }
  int code(int index) const { return static_cast<int8_t>(bytes[static_cast<size_t>(index)]); }
  /// Of an element of the row, V's behind K's.
  float scale(int index) const {
    const int block = index / layout.head_dim * layout.scales() + index % layout.head_dim / kKvScaleBlock;
    uint16_t half;
    std::memcpy(&half, bytes.data() + layout.scales_offset() + sizeof half * static_cast<size_t>(block), sizeof half);
    return ggml_fp16_to_fp32(half);
  }

  KvRowLayout layout;
  std::vector<std::byte> bytes;
};

std::vector<float> random_row(int dim, Random& random) {
  std::vector<float> elements(size_t{2} * dim);
  for (float& value : elements) value = random.normal(1.0f) * std::exp(random.normal(2.0f));
  return elements;
}

TEST(KvRow, SizesAreMultiplesOf16) {
  EXPECT_EQ((KvRowLayout{KvType::Bf16, 128}.bytes()), 512);
  EXPECT_EQ((KvRowLayout{KvType::Q8, 128}.bytes()), 272);
  EXPECT_EQ((KvRowLayout{KvType::Q8, 64}.bytes()), 144);
  EXPECT_EQ((KvRowLayout{KvType::Q8, 80}.bytes()), 176) << "three scales of K and three of V";
  for (const int dim : kDims) {
    const KvRowLayout layout{KvType::Q8, dim};
    EXPECT_EQ(layout.bytes() % 16, 0);
    EXPECT_GE(layout.bytes(), 2 * dim + 4 * layout.scales());
    EXPECT_LT(layout.bytes(), 2 * dim + 4 * layout.scales() + 16);
  }
}

// Whole blocks of 32 as quantize_row_q8_0() of ggml has them; halves are rounded to even here, away from 0 there.
TEST(KvRow, IsGgmlsQ8_0) {
  struct Block {
    ggml_fp16_t scale;
    int8_t codes[32];
  };
  Random random(1);
  for (const int dim : {32, 64, 96, 128, 256}) {
    for (int round = 0; round < 50; ++round) {
      const std::vector<float> elements = random_row(dim, random);
      std::vector<Block> theirs(elements.size() / 32);
      ASSERT_EQ(sizeof(Block), ggml_type_size(GGML_TYPE_Q8_0));
      ggml_quantize_chunk(GGML_TYPE_Q8_0, elements.data(), theirs.data(), 0, 1, static_cast<int64_t>(elements.size()),
                          nullptr);
      Row row(dim);
      row.write(elements);
      for (int i = 0; i < 2 * dim; ++i) {
        const Block& block = theirs[static_cast<size_t>(i / 32)];
        ASSERT_EQ(row.scale(i), ggml_fp16_to_fp32(block.scale));
        const float distance = std::abs(elements[static_cast<size_t>(i)]) / row.scale(i);
        const bool half = std::abs(distance - std::floor(distance) - 0.5f) < 1e-2f;
        ASSERT_LE(std::abs(row.code(i) - block.codes[i % 32]), half ? 1 : 0) << "element " << i;
      }
    }
  }
}

TEST(KvRow, IsOffByHalfAStepAndWhatTheScaleIsRoundedBy) {
  Random random(2);
  for (const int dim : kDims) {
    const std::vector<float> elements = random_row(dim, random);
    Row row(dim);
    row.write(elements);
    const std::vector<float> read = row.read();
    for (int i = 0; i < 2 * dim; ++i) {
      const double value = elements[static_cast<size_t>(i)], scale = row.scale(i);
      EXPECT_LE(std::abs(read[static_cast<size_t>(i)] - value), 0.5001 * scale + 0x1p-11 * std::abs(value) * 1.001)
          << "head size " << dim << ", element " << i;
    }
  }
}

TEST(KvRow, WrittenAgainIsTheSame) {
  Random random(3);
  for (const int dim : kDims) {
    for (const float size : {1.0f, 3e-6f, 1e-7f, 1e-9f, 5e4f}) {  // the middle ones: scales that are subnormal or 0
      std::vector<float> elements = random_row(dim, random);
      for (float& value : elements) value *= size;
      Row first(dim), again(dim);
      first.write(elements);
      again.write(first.read());
      EXPECT_EQ(first.bytes, again.bytes) << "head size " << dim << ", size " << size;
    }
  }
}

TEST(KvRow, ZerosAndWhatIsBehindTheScalesAreZeros) {
  for (const int dim : {16, 80, 64}) {
    Row row(dim);
    row.write(std::vector<float>(size_t{2} * dim, 0.0f));
    EXPECT_EQ(row.bytes, std::vector<std::byte>(row.bytes.size(), std::byte{0})) << "head size " << dim;
  }
}

// What is no number, or out of the range of a scale, shows in all of its block and nowhere else.
TEST(KvRow, NotFinite) {
  Random random(4);
  for (const int dim : kDims) {
    for (const float bad : {kNan, kInfinity, -kInfinity, 1e7f}) {
      std::vector<float> elements = random_row(dim, random);
      for (float& value : elements) value = std::fmod(value, 100.0f);
      const int at = dim / 2, end = std::min(dim, at / kKvScaleBlock * kKvScaleBlock + kKvScaleBlock);
      elements[static_cast<size_t>(at)] = bad;
      Row row(dim);
      row.write(elements);
      const std::vector<float> read = row.read();
      for (int i = 0; i < 2 * dim; ++i) {
        const bool broken = i >= at / kKvScaleBlock * kKvScaleBlock && i < end;
        EXPECT_EQ(std::isnan(read[static_cast<size_t>(i)]), broken) << "head size " << dim << ", element " << i;
      }
    }
  }
}

TEST(KvRow, PartsAreReadAlone) {
  Random random(5);
  for (const KvType type : {KvType::Bf16, KvType::Q8}) {
    const KvRowLayout layout{type, 80};
    const std::vector<float> elements = random_row(80, random);
    std::vector<std::byte> row(static_cast<size_t>(layout.bytes()));
    write_kv_row(layout, elements.data(), elements.data() + 80, row.data());
    std::vector<float> both(160), key(80), value(80);
    read_kv_row(layout, row.data(), both.data(), both.data() + 80);
    read_kv_row(layout, row.data(), key.data(), nullptr);
    read_kv_row(layout, row.data(), nullptr, value.data());
    EXPECT_TRUE(std::equal(key.begin(), key.end(), both.begin()));
    EXPECT_TRUE(std::equal(value.begin(), value.end(), both.begin() + 80));
  }
}

}  // namespace
}  // namespace tidal
