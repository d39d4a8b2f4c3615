// Half precision against ggml's conversions.
#include "core/half.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tidal {
namespace {

uint32_t bits_of_half(uint16_t half) { return std::bit_cast<uint32_t>(half_to_float(half)); }

TEST(Half, EveryPatternIsWhatItIsInGgml) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float expected = ggml_fp16_to_fp32(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(half_to_float(half))) << bits;
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(half_to_float(half))))) << bits;
    } else {
      EXPECT_EQ(bits_of_half(half), std::bit_cast<uint32_t>(expected)) << bits;
      EXPECT_EQ(float_to_half(expected), half);
    }
  }
}

/// Between two neighbours, in the middle, and beside it.
TEST(Half, RoundsAsGgmlDoes) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const double low = half_to_float(static_cast<uint16_t>(bits));
      const double high = bits == 0x7bff ? 65536 : half_to_float(static_cast<uint16_t>(bits + 1));
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e6f)}) {
        const float given = sign ? -value : value;
        EXPECT_EQ(float_to_half(given), ggml_fp32_to_fp16(given)) << given;
      }
    }
  }
}

}  // namespace
}  // namespace tidal
