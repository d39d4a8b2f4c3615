// Weights to bf16 in one step against ggml's way to float32, rounded.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/dequantise_bf16.h"
#include "parity/setup.h"

namespace tidal::parity {
namespace {

constexpr ggml_type kTypes[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                                GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K};

class DequantiseBf16 : public testing::TestWithParam<ggml_type> {
 protected:
  void SetUp() override {
    Bf16 to[256];
    const std::byte from[256] = {};
    if (!dequantise_to_bf16(GGML_TYPE_Q8_0, from, 32, to)) GTEST_SKIP() << "this processor has no AVX512-BF16";
  }
};

INSTANTIATE_TEST_SUITE_P(Types, DequantiseBf16, testing::ValuesIn(kTypes),
                         [](const auto& info) { return std::string(ggml_type_name(info.param)); });

// Types with a minimum: d * q + m, where ggml may round once or twice. Both are within 2^-23 of the larger term.
bool has_minimum(ggml_type type) {
  return type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1 || type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K;
}

TEST_P(DequantiseBf16, AsGgmlRounded) {
  Random random(23);
  const int64_t block = ggml_blck_size(GetParam());
  for (const int64_t blocks : {1, 2, 3, 4, 5, 27, 152}) {
    const int64_t count = blocks * block;
    const HostWeight weight = random_weight(GetParam(), 3, static_cast<int>(count), random);
    std::vector<Bf16> got(3 * count + 1, Bf16{77});
    float largest = 0;
    for (const float value : weight.values) largest = std::max(largest, std::abs(value));
    for (int row = 0; row < 3; ++row) {
      // A copy of its own size, so that a sanitizer sees a read behind it.
      const std::vector<std::byte> bytes(weight.view.row(row), weight.view.row(row) + weight.view.row_bytes());
      ASSERT_TRUE(dequantise_to_bf16(GetParam(), bytes.data(), count, got.data() + row * count));
    }
    for (int64_t i = 0; i < 3 * count; ++i) {
      const float expected = weight.values[i];
      if (!has_minimum(GetParam())) {
        ASSERT_EQ(got[i].bits, to_bf16(expected).bits) << i << " of " << count;
      } else {
        ASSERT_NEAR(to_float(got[i]), expected, std::abs(expected) * 0x1p-8 + 4 * largest * 0x1p-23) << i;
      }
    }
    EXPECT_EQ(got[3 * count].bits, 77) << "wrote beyond the end";
  }
}

TEST_P(DequantiseBf16, AnyBytes) {
  Random random(24);
  const int64_t count = 10 * ggml_blck_size(GetParam());
  std::vector<std::byte> bytes(ggml_row_size(GetParam(), count));
  for (int round = 0; round < 50; ++round) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.integer(0, 255));
    std::vector<float> expected(count);
    ggml_get_type_traits(GetParam())->to_float(bytes.data(), expected.data(), count);
    std::vector<Bf16> got(count);
    ASSERT_TRUE(dequantise_to_bf16(GetParam(), bytes.data(), count, got.data()));
    for (int64_t i = 0; i < count; ++i) {
      const float value = to_float(got[i]);
      ASSERT_EQ(std::isnan(value), std::isnan(expected[i])) << i;
      if (std::isnan(value)) continue;
      if (!has_minimum(GetParam()) || std::isinf(expected[i])) {
        ASSERT_EQ(got[i].bits, to_bf16(expected[i]).bits) << i;
      } else {
        // Half-precision scales are below 2^16, 6-bit ones below 2^6, quants below 2^5.
        ASSERT_NEAR(value, expected[i], std::abs(expected[i]) * 0x1p-8 + 0x1p27 * 0x1p-23) << i;
      }
    }
  }
}

TEST(DequantiseBf16, OtherTypesAreLeftAlone) {
  const std::byte from[256] = {};
  Bf16 to[32] = {};
  to[0].bits = 5;
  EXPECT_FALSE(dequantise_to_bf16(GGML_TYPE_F16, from, 32, to));
  EXPECT_EQ(to[0].bits, 5);
}

}  // namespace
}  // namespace tidal::parity
