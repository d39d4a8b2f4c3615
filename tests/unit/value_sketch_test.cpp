// Sketches of values: codes and scales against the words of backend/value_sketch.h, and the sums that are made of them.
#include "backend/value_sketch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/cpu/value_sums.h"
#include "backend/sketch.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr int kRows = kBlockTokens;
static_assert(ValueSketchLayout::kRowsOfBlock == kBlockTokens);

struct Tile {
  Tile(int head_dim, KvType type, Random& random, float deviation = 1.0f)
      : layout{head_dim},
        rows{type, head_dim},
        bytes(static_cast<size_t>(rows.bytes()) * kRows),
        sketch(static_cast<size_t>(layout.bytes()), std::byte{0xff}) {
    std::vector<float> key(static_cast<size_t>(head_dim)), value(static_cast<size_t>(head_dim));
    for (int p = 0; p < kRows; ++p) {
      for (int d = 0; d < head_dim; ++d) value[d] = 3.0f * static_cast<float>(d % 5) + random.normal(deviation);
      write_kv_row(rows, key.data(), value.data(), bytes.data() + p * rows.bytes());
    }
    sketch_values(layout, type, bytes.data(), sketch.data());
  }
  std::vector<float> value(int p) const {
    std::vector<float> value(static_cast<size_t>(layout.head_dim));
    read_kv_row(rows, bytes.data() + p * rows.bytes(), nullptr, value.data());
    return value;
  }
  std::vector<float> mean() const {
    std::vector<float> mean(static_cast<size_t>(layout.head_dim));
    value_sketch_mean(layout, sketch.data(), mean.data());
    return mean;
  }
  float scale(int p) const {
    Bf16 scale;
    std::memcpy(&scale, sketch.data() + layout.scales_offset() + sizeof scale * static_cast<size_t>(p), sizeof scale);
    return to_float(scale);
  }
  int code(int p, int d) const {
    return std::to_integer<int>(sketch[static_cast<size_t>(layout.byte(p, d))]) >> layout.shift(d) & 3;
  }

  ValueSketchLayout layout;
  KvRowLayout rows;
  std::vector<std::byte> bytes, sketch;
};

class ValueSketches : public testing::TestWithParam<int> {};

TEST_P(ValueSketches, AreMeanCodesAndTheScaleOfLeastSquares) {
  for (const KvType type : {KvType::Bf16, KvType::Q8, KvType::F32}) {
    Random random(static_cast<uint64_t>(GetParam()));
    const Tile tile(GetParam(), type, random);
    const std::vector<float> mean = tile.mean();
    std::vector<double> sums(mean.size(), 0.0);
    for (int p = 0; p < kRows; ++p) {
      const std::vector<float> value = tile.value(p);
      double squares = 0, products = 0, codes = 0;
      for (size_t d = 0; d < value.size(); ++d) {
        sums[d] += value[d];
        const double difference = static_cast<double>(value[d]) - mean[d];
        squares += difference * difference;
      }
      const double rms = std::sqrt(squares / GetParam());
      std::vector<float> estimate(value.size());
      value_sketch_row(tile.layout, tile.sketch.data(), p, estimate.data());
      for (size_t d = 0; d < value.size(); ++d) {
        const double difference = static_cast<double>(value[d]) - mean[d], step = difference / rms + 2;
        const int code = tile.code(p, static_cast<int>(d));
        // On the edge of two steps rounding decides.
        if (std::abs(step - std::round(step)) > 1e-5) {
          EXPECT_EQ(code, std::clamp(static_cast<int>(std::floor(step)), 0, 3)) << "row " << p << ", channel " << d;
        }
        products += difference * (code - 1.5);
        codes += (code - 1.5) * (code - 1.5);
        EXPECT_EQ(estimate[d], mean[d] + tile.scale(p) * (static_cast<float>(code) - 1.5f));
      }
      EXPECT_NEAR(tile.scale(p), products / codes, std::abs(products / codes) * 0x1p-8);
    }
    for (size_t d = 0; d < mean.size(); ++d) EXPECT_NEAR(mean[d], sums[d] / kRows, std::abs(sums[d] / kRows) * 0x1p-8);
  }
}

// Four equal steps of a normal distribution leave 0.119 of its variance (J. Max, 1960); of a row of n the least squares
// leave less.
TEST_P(ValueSketches, LeaveAnEighthOfTheVariance) {
  Random random(7);
  const Tile tile(GetParam(), KvType::F32, random);
  double before = 0, after = 0;
  const std::vector<float> mean = tile.mean();
  for (int p = 0; p < kRows; ++p) {
    const std::vector<float> value = tile.value(p);
    std::vector<float> estimate(value.size());
    value_sketch_row(tile.layout, tile.sketch.data(), p, estimate.data());
    for (size_t d = 0; d < value.size(); ++d) {
      before += std::pow(static_cast<double>(value[d]) - mean[d], 2);
      after += std::pow(static_cast<double>(value[d]) - estimate[d], 2);
    }
  }
  EXPECT_LT(after, 0.13 * before);
  EXPECT_GT(after, 0.05 * before);
}

TEST_P(ValueSketches, OfEqualRowsAreExact) {
  Random random(3);
  const Tile tile(GetParam(), KvType::Bf16, random, 0.0f);
  for (int p = 0; p < kRows; ++p) {
    std::vector<float> estimate(static_cast<size_t>(GetParam()));
    value_sketch_row(tile.layout, tile.sketch.data(), p, estimate.data());
    EXPECT_EQ(estimate, tile.value(p));
  }
}

TEST_P(ValueSketches, SumsAreThoseOfTheRows) {
  Random random(5);
  const int dim = GetParam();
  std::vector<Tile> tiles;
  std::vector<const std::byte*> sketches, codes;
  for (int b = 0; b < 5; ++b) {
    tiles.emplace_back(dim, KvType::Bf16, random);
  }
  for (const Tile& tile : tiles) {
    sketches.push_back(tile.sketch.data());
    for (int p = 0; p < kRows; p += 7) {
      codes.push_back(tile.sketch.data() + tile.layout.codes_offset() + p * tile.layout.row_bytes());
    }
  }
  const auto count = static_cast<int>(codes.size());
  for (const int heads : {1, 2, 3, 5, 7, 8, 9, 20}) {
    const ptrdiff_t stride = count + 3;
    const std::vector<float> weights = random.uniform(static_cast<size_t>(stride) * heads, 1.0f);
    std::vector<float> of_means(static_cast<size_t>(heads) * dim, 1.0f), of_codes = of_means;
    add_means(tiles[0].layout, sketches.data(), 5, weights.data(), stride, heads, of_means.data());
    add_codes(tiles[0].layout, codes.data(), count, weights.data(), stride, heads, of_codes.data());
    for (int h = 0; h < heads; ++h) {
      for (int d = 0; d < dim; ++d) {
        double means = 1, all_codes = 1, magnitude = 1;
        for (int b = 0, i = 0; b < 5; ++b) {
          means += static_cast<double>(weights[h * stride + b]) * tiles[b].mean()[d];
          magnitude += std::abs(static_cast<double>(weights[h * stride + b]) * tiles[b].mean()[d]);
          for (int p = 0; p < kRows; p += 7, ++i) {
            all_codes += static_cast<double>(weights[h * stride + i]) * (tiles[b].code(p, d) - 1.5);
            magnitude += 1.5 * std::abs(weights[h * stride + i]);
          }
        }
        EXPECT_NEAR(of_means[static_cast<size_t>(h) * dim + d], means, 0x1p-24 * (count + 1) * magnitude);
        EXPECT_NEAR(of_codes[static_cast<size_t>(h) * dim + d], all_codes, 0x1p-24 * (count + 1) * magnitude);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, ValueSketches, testing::Values(16, 64, 80, 128, 256),
                         [](const auto& info) { return std::to_string(info.param); });

TEST(BlockSums, AreThoseOf64Terms) {
  Random random(1);
  const std::vector<float> terms = random.uniform(3 * kBlockTokens, 1.0f);
  float sums[3];
  block_sums(terms.data(), 3, sums);
  for (int b = 0; b < 3; ++b) {
    double sum = 0;
    for (int p = 0; p < kBlockTokens; ++p) sum += terms[b * kBlockTokens + p];
    EXPECT_NEAR(sums[b], sum, 0x1p-24 * kBlockTokens * kBlockTokens);
  }
}

}  // namespace
}  // namespace tidal
