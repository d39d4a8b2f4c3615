// Weights to bf16 in one step, on the processor and on the device, against ggml's way to float32, rounded.
#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/dequantise_bf16.h"
#include "parity/setup.h"

namespace tidal::parity {
namespace {

class DequantiseBf16 : public testing::TestWithParam<ggml_type> {
 protected:
  void SetUp() override {
    Bf16 to[256];
    const std::byte from[256] = {};
    if (!dequantise_to_bf16(GGML_TYPE_Q8_0, from, 32, to)) GTEST_SKIP() << "this processor has no AVX512-BF16";
  }
};

INSTANTIATE_TEST_SUITE_P(Types, DequantiseBf16, testing::ValuesIn(kQuantisedTypes),
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

/// Every type that ggml can quantise to and dequantise.
std::vector<ggml_type> all_types() {
  std::vector<ggml_type> types;
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    const auto type = static_cast<ggml_type>(t);
    const bool floats = type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float;
    // Activations' own types cannot be made by ggml_quantize_chunk().
    const bool activations = type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K;
    if (floats && ggml_get_type_traits_cpu(type)->vec_dot && !activations) types.push_back(type);
  }
  return types;
}

class Upload : public test::BackendTest<std::tuple<std::string, ggml_type>> {
 protected:
  ggml_type type() const { return std::get<1>(GetParam()); }

  std::vector<Bf16> read(Device& device, const Weight& weight) const {
    EXPECT_EQ(weight.type, GGML_TYPE_BF16);
    std::vector<Bf16> values(static_cast<size_t>(weight.rows * weight.cols));
    device->read(reinterpret_cast<std::byte*>(values.data()), weight.data, sizeof(Bf16) * values.size());
    return values;
  }
  /// What `bytes` stand for, rounded.
  std::vector<Bf16> expected(const std::vector<std::byte>& bytes, int64_t count) const {
    std::vector<float> values(static_cast<size_t>(count));
    if (type() == GGML_TYPE_F32) {
      std::memcpy(values.data(), bytes.data(), bytes.size());
    } else {
      ggml_get_type_traits(type())->to_float(bytes.data(), values.data(), count);
    }
    std::vector<Bf16> rounded;
    for (const float value : values) rounded.push_back(to_bf16(value));
    return rounded;
  }
  static void expect_same(const std::vector<Bf16>& got, const std::vector<Bf16>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(to_float(expected[i]))) {
        ASSERT_TRUE(std::isnan(to_float(got[i]))) << i;  // which NaN is the machine's business
      } else {
        ASSERT_EQ(got[i].bits, expected[i].bits) << i << " of " << got.size();
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Types, Upload, testing::Combine(testing::Values("cuda"), testing::ValuesIn(all_types())),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + ggml_type_name(std::get<1>(info.param));
                         });

TEST_P(Upload, RoundsWhatGgmlDequantises) {
  Random random(25);
  Device device("cuda", 2, false);
  for (const int rows : {2, 3, 50}) {
    const HostWeight host = random_weight(type(), rows, 768, random);
    expect_same(read(device, device.weight(host)), expected(host.bytes, int64_t{rows} * 768));
  }
}

TEST_P(Upload, OfMorePiecesThanThereAreWays) {
  // 8 MiB go at once; at the end a piece that is not whole.
  Random random(26);
  const HostWeight some = random_weight(type(), 8, 1024, random);
  const auto rows = static_cast<int64_t>((size_t{30} << 20) / some.view.row_bytes() + 5);
  std::vector<std::byte> bytes;
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* row = some.view.row(r * r % 8);
    bytes.insert(bytes.end(), row, row + some.view.row_bytes());
  }
  Device device("cuda", 2, false);
  const std::vector<Bf16> got = read(device, device->upload({type(), rows, 1024, bytes.data()}));
  const std::vector<Bf16> once = expected(some.bytes, 8 * 1024);
  std::vector<Bf16> all;
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = once.begin() + r * r % 8 * 1024;
    all.insert(all.end(), row, row + 1024);
  }
  expect_same(got, all);
}

TEST_P(Upload, AnyBytes) {
  const bool floats = type() == GGML_TYPE_F32 || type() == GGML_TYPE_F16 || type() == GGML_TYPE_BF16;
  const bool kept = std::find(kKeptTypes.begin(), kKeptTypes.end(), type()) != kKeptTypes.end();
  const bool scaled = kept || type() == GGML_TYPE_Q2_K || type() == GGML_TYPE_Q3_K;
  if (!floats && !scaled) GTEST_SKIP() << "the host dequantises this type, and ggml expects sound blocks";
  // Scales of every size, infinite and NaN, too.
  Random random(27);
  Device device("cuda", 2, false);
  std::vector<std::byte> bytes(ggml_row_size(type(), 1024) * 64);
  for (int round = 0; round < 10; ++round) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.integer(0, 255));
    expect_same(read(device, device->upload({type(), 64, 1024, bytes.data()})), expected(bytes, 64 * 1024));
  }
}

TEST_P(Upload, ReadsTheHostsMemoryAnew) {
  // Another model may be mapped where one was before.
  Random random(28);
  Device device("cuda", 2, false);
  HostWeight host = random_weight(type(), 4, 768, random);
  const std::vector<std::byte> first = host.bytes;
  const Weight one = device.weight(host);
  const HostWeight next = random_weight(type(), 4, 768, random);
  std::copy(next.bytes.begin(), next.bytes.end(), host.bytes.begin());
  const Weight other = device.weight(host);
  expect_same(read(device, one), expected(first, 4 * 768));
  expect_same(read(device, other), expected(next.bytes, 4 * 768));
}

/// What stays quantised, through the embedding, which gives rows as they are.
class Kept : public test::BackendTest<std::tuple<std::string, ggml_type>> {
 protected:
  ggml_type type() const { return std::get<1>(GetParam()); }

  void expect_rows(const std::vector<std::byte>& bytes, int rows, int cols, Random& random) const {
    Hyperparameters hp = attention_shape(1, 1, 32);
    hp.width = cols;
    hp.vocab = rows;
    const HostBatch batch({{0, 70}, {3, 1}}, rows, random);
    Device device("cuda");
    device.begin(hp, batch);
    const Rows x = device.rows(batch->rows(), cols);
    const Weight matrix = device->upload({type(), rows, cols, bytes.data()});
    ASSERT_EQ(matrix.type, type());
    device->embed(matrix, *batch, x);
    const std::vector<float> got = device.read(x);
    std::vector<float> expected(static_cast<size_t>(cols));
    for (int r = 0; r < batch->rows(); ++r) {
      const std::byte* row = bytes.data() + ggml_row_size(type(), cols) * static_cast<size_t>(batch->tokens[r]);
      ggml_get_type_traits(type())->to_float(row, expected.data(), cols);
      for (int i = 0; i < cols; ++i) {
        const float value = got[static_cast<size_t>(r) * cols + i];
        if (std::isnan(expected[i])) {
          ASSERT_TRUE(std::isnan(value)) << "row " << r << ", column " << i;
        } else {
          ASSERT_EQ(value, expected[i]) << "row " << r << ", column " << i;
        }
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Types, Kept, testing::Combine(testing::Values("cuda"), testing::ValuesIn(kKeptTypes)),
                         [](const auto& info) { return std::string(ggml_type_name(std::get<1>(info.param))); });

TEST_P(Kept, AsGgmlHasThem) {
  Random random(29);
  const int block = static_cast<int>(ggml_blck_size(type()));
  // Rows and columns that do not fill a tile, and more than goes at once.
  for (const auto& [rows, cols] : {std::pair{2, 3 * block}, {13, 8 * block}, {9000, 10 * 256}}) {
    const HostWeight some = random_weight(type(), 7, cols, random);
    std::vector<std::byte> bytes;
    for (int r = 0; r < rows; ++r) {
      bytes.insert(bytes.end(), some.view.row(r % 7), some.view.row(r % 7) + some.view.row_bytes());
    }
    expect_rows(bytes, rows, cols, random);
  }
}

TEST_P(Kept, AnyBytes) {
  Random random(30);
  std::vector<std::byte> bytes(ggml_row_size(type(), 1024) * 64);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.integer(0, 255));
  expect_rows(bytes, 64, 1024, random);
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
