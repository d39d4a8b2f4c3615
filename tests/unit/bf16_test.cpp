// bfloat16 conversions, scalar and vector.
#include "core/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/vector_ops.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

TEST(Bf16, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Bf16 pattern{static_cast<uint16_t>(bits)};
    const float value = to_float(pattern);
    EXPECT_EQ(bits_of(value), bits << 16);
    if (std::isnan(value)) {
      EXPECT_EQ(to_bf16(value).bits, bits | 0x40) << "a NaN keeps its sign and payload and is quiet";
    } else {
      EXPECT_EQ(to_bf16(value).bits, bits);
    }
  }
}

TEST(Bf16, HalfwayGoesToEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = to_float({static_cast<uint16_t>(bits)});
    if (!std::isfinite(value)) continue;
    const uint32_t halfway = (bits << 16) | 0x8000u;
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;  // beyond the largest value that is infinity, as IEEE has it
    EXPECT_EQ(to_bf16(std::bit_cast<float>(halfway)).bits, even);
    EXPECT_EQ(to_bf16(std::bit_cast<float>(halfway - 1)).bits, bits);
    EXPECT_EQ(to_bf16(std::bit_cast<float>(halfway + 1)).bits, bits + 1);
  }
}

TEST(Bf16, NanNeverBecomesANumber) {
  for (const uint32_t low : {0x0001u, 0x7fffu, 0x8000u, 0xffffu}) {
    for (const uint32_t high : {0x7f80u, 0xff80u, 0x7fffu, 0xffffu, 0x7fbfu}) {
      const float value = std::bit_cast<float>((high << 16) | low);
      EXPECT_TRUE(std::isnan(to_float(to_bf16(value)))) << std::hex << bits_of(value);
      EXPECT_EQ(std::signbit(to_float(to_bf16(value))), std::signbit(value));
    }
  }
}

TEST(Bf16, VectorsRoundAsScalars) {
  std::vector<float> values;
  for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
    for (uint32_t high = 0; high < 65536; ++high) values.push_back(std::bit_cast<float>((high << 16) | low));
  }
  std::vector<Bf16> converted(values.size());
  floats_to_bf16(values.data(), static_cast<int>(values.size()), converted.data());
  size_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) wrong += converted[i].bits != to_bf16(values[i]).bits;
  EXPECT_EQ(wrong, 0u);
  // Lengths that are no multiple of a vector, at addresses that are not aligned.
  Random random(3);
  for (int count = 0; count < 70; ++count) {
    const std::vector<float> few = random.uniform(count + 1, 3.0f);
    std::vector<Bf16> to(count + 2, Bf16{0x1234});
    floats_to_bf16(few.data() + 1, count, to.data() + 1);
    for (int i = 0; i < count; ++i) EXPECT_EQ(to[i + 1].bits, to_bf16(few[i + 1]).bits);
    EXPECT_EQ(to.front().bits, 0x1234);
    EXPECT_EQ(to.back().bits, 0x1234);
  }
}

}  // namespace
}  // namespace tidal
