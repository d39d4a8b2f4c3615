// The units of keys in an 8-bit cache: what the weights say, and what they are good for.
#include "model/key_units.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/sketch.h"
#include "model/model.h"
#include "model/rope.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr int kDim = 16, kWidth = 32;

/// A layer of one KV head and two query heads whose matrices have rows of norm 1.
struct OneLayer {
  explicit OneLayer(Rope::Pairing pairing = Rope::Pairing::Halves, int rotated = kDim) {
    model.hp.architecture = "llama";
    model.hp.layers = 1;
    model.hp.width = kWidth;
    model.hp.heads = 2;
    model.hp.kv_heads = 1;
    model.hp.head_dim = kDim;
    model.hp.rope = make_rope(pairing, rotated, 10000, {}, {});
    model.layers.resize(1);
  }
  Layer& layer() { return model.layers[0]; }
  Weight matrix(const std::vector<float>& values) const {
    return {GGML_TYPE_F32, static_cast<int64_t>(values.size()) / kWidth, kWidth,
            reinterpret_cast<const std::byte*>(values.data())};
  }
  static Weight vector(const std::vector<float>& values) {
    return {GGML_TYPE_F32, 1, static_cast<int64_t>(values.size()), reinterpret_cast<const std::byte*>(values.data())};
  }
  std::vector<float> units() {
    layer().wk = layer().wv = matrix(keys);
    layer().wq = matrix(queries);
    layer().bk = vector(bias);
    set_key_units(model);
    const float* const first = layer().key_units.floats();
    return {first, first + layer().key_units.cols};
  }

  Model model;
  std::vector<float> keys = std::vector<float>(kDim * kWidth, std::sqrt(1.0f / kWidth));
  std::vector<float> queries = std::vector<float>(2 * kDim * kWidth, std::sqrt(1.0f / kWidth));
  std::vector<float> bias = std::vector<float>(kDim, 0.0f);
};

TEST(KeyUnits, AllAlikeAreOne) { EXPECT_EQ(OneLayer().units(), std::vector<float>(kDim, 1.0f)); }

/// One of a pair is 127 times as large, so the pair 90 times, 2^6.49: of its unit's exponent, 2/3 of that, 2/16 are the
/// mean of all, so 3.79 and -.54 are left.
TEST(KeyUnits, PairsOfLargeBiasHaveLargeOnes) {
  for (const auto pairing : {Rope::Pairing::Halves, Rope::Pairing::Adjacent}) {
    OneLayer one(pairing);
    one.bias[10] = -127;
    const size_t mate = pairing == Rope::Pairing::Halves ? 2 : 11;
    const std::vector<float> units = one.units();
    for (size_t d = 0; d < units.size(); ++d) EXPECT_EQ(units[d], d == 10 || d == mate ? 16.0f : 0.5f) << d;
  }
}

/// 127 times, 2^6.99: 2/3 of that less a 16th is 4.37, and -.29 are left to the others.
TEST(KeyUnits, WhatDoesNotRotateIsAlone) {
  OneLayer fixed, rest(Rope::Pairing::Halves, 8);
  fixed.layer().rotates = false;
  for (OneLayer* one : {&fixed, &rest}) {
    one->bias[10] = 127;
    const std::vector<float> units = one->units();
    for (size_t d = 0; d < units.size(); ++d) EXPECT_EQ(units[d], d == 10 ? 16.0f : 1.0f) << d;
  }
}

/// Queries of both heads 64 times as large: -2, and a 16th of that is the mean.
TEST(KeyUnits, LargeQueriesMakeThemSmall) {
  OneLayer one;
  one.layer().rotates = false;
  for (const int row : {3, kDim + 3}) {
    for (int i = 0; i < kWidth; ++i) one.queries[row * kWidth + i] *= 64;
  }
  const std::vector<float> units = one.units();
  for (int d = 0; d < kDim; ++d) EXPECT_EQ(units[d], d == 3 ? 0.25f : 1.0f) << d;
}

/// With a norm of heads the gain says how large an element is, 64 times here, not the matrix alone.
TEST(KeyUnits, NormsCount) {
  OneLayer one;
  one.layer().rotates = false;
  std::vector<float> gains(kDim, 1.0f), ones(kDim, 1.0f);
  gains[5] = 64;
  for (float& value : one.keys) value *= 3;
  one.layer().k_norm = OneLayer::vector(gains);
  one.layer().q_norm = OneLayer::vector(ones);
  const std::vector<float> units = one.units();
  for (int d = 0; d < kDim; ++d) EXPECT_EQ(units[d], d == 5 ? 16.0f : 1.0f) << d;
}

TEST(KeyUnits, WeightsThatSayNothingGiveOnes) {
  for (const float value : {0.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    OneLayer one;
    one.keys.assign(one.keys.size(), 0.0f);
    one.keys[7 * kWidth] = value;
    EXPECT_EQ(one.units(), std::vector<float>(kDim, 1.0f)) << value;
  }
}

/// Elements that are always 0 count as some thousandth of the largest: units stay within what float32 has.
TEST(KeyUnits, ZerosAreSmall) {
  OneLayer one;
  one.layer().rotates = false;
  std::fill_n(one.keys.begin() + 3 * kWidth, kWidth, 0.0f);
  std::fill_n(one.queries.begin() + 4 * kWidth, kWidth, 0.0f);
  std::fill_n(one.queries.begin() + (kDim + 4) * kWidth, kWidth, 0.0f);
  const std::vector<float> units = one.units();
  // -8 and 4, less their mean of -1/4.
  for (int d = 0; d < kDim; ++d) EXPECT_EQ(units[d], d == 3 ? 0x1p-8f : d == 4 ? 16.0f : 1.0f) << d;
}

TEST(KeyUnits, LayersThatReadAnothersKeysHaveItsUnits) {
  OneLayer one;
  one.bias[10] = 127;
  one.model.hp.layers = 2;
  one.model.hp.shared_kv_layers = 1;
  one.model.layers.resize(2);
  const std::vector<float> units = one.units();
  const Weight& others = one.model.layers[1].key_units;
  ASSERT_EQ(others.cols, kDim);
  EXPECT_EQ(std::vector<float>(others.floats(), others.floats() + kDim), units);
}

/// A quantised matrix is read as what it means.
TEST(KeyUnits, QuantisedMatrices) {
  Random random(4);
  OneLayer one;
  for (float& value : one.keys) value = random.normal(1);
  for (int i = 0; i < kWidth; ++i) one.keys[2 * kWidth + i] *= 40;
  const std::vector<float> exact = one.units();
  std::vector<std::byte> quantised(ggml_row_size(GGML_TYPE_Q8_0, kWidth) * kDim);
  ggml_quantize_chunk(GGML_TYPE_Q8_0, one.keys.data(), quantised.data(), 0, kDim, kWidth, nullptr);
  one.layer().wk = {GGML_TYPE_Q8_0, kDim, kWidth, quantised.data()};
  set_key_units(one.model);
  const float* const units = one.layer().key_units.floats();
  for (int d = 0; d < kDim; ++d) {
    // Sizes within 1 %, so a hundredth of an exponent before it is rounded.
    EXPECT_LE(std::abs(std::log2(units[d] / exact[static_cast<size_t>(d)])), 1) << d;
  }
  EXPECT_GE(units[2], 8 * units[0]);
}

float product(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return static_cast<float>(sum);
}

/// Keys with a pair of large, nearly constant elements: in units scores are off by what half a step of each block
/// explains, and that is a small part of what they are off by without.
TEST(KeyUnits, SmallElementsKeepTheirBits) {
  for (const int dim : {48, 64, 128}) {
    Random random(static_cast<uint64_t>(dim));
    const KvRowLayout layout{KvType::Q8, dim};
    const auto size = static_cast<size_t>(dim), large = size / 4, mate = large + size / 2;
    std::vector<float> units(size, 0.5f);
    units[large] = units[mate] = 16;
    double without = 0, within = 0;
    for (int i = 0; i < 100; ++i) {
      std::vector<float> key(size), query(size), value(size), got(size), in_units(size), scaled(size);
      for (size_t d = 0; d < size; ++d) key[d] = random.normal(1), query[d] = random.normal(1);
      key[large] += 130;
      key[mate] -= 90;
      std::vector<std::byte> row(static_cast<size_t>(layout.bytes()));
      const auto kept = [&](const std::vector<float>& keys) {
        write_kv_row(layout, keys.data(), value.data(), row.data());
        read_kv_row(layout, row.data(), got.data(), nullptr);
        return got;
      };
      const float exact = product(query, key);
      without += std::abs(product(query, kept(key)) - exact);
      double bound = 0;
      for (size_t d = 0; d < size; ++d) in_units[d] = key[d] / units[d], scaled[d] = query[d] * units[d];
      for (size_t first = 0; first < size; first += kKvScaleBlock) {
        float top = 0, weights = 0;
        const size_t end = std::min(size, first + kKvScaleBlock);
        for (size_t d = first; d < end; ++d) top = std::max(top, std::abs(in_units[d]));
        for (size_t d = first; d < end; ++d) {
          // The scale is rounded to 11 bits, which moves a code's value by that part of it.
          weights += std::abs(scaled[d]) * (0.5f / 127 + std::abs(in_units[d]) / top * 0x1p-11f);
        }
        bound += top * weights;
      }
      const double error = std::abs(product(scaled, kept(in_units)) - exact);
      EXPECT_LE(error, bound * 1.001 + 0x1p-20 * std::abs(exact));
      within += error;
    }
    EXPECT_LE(within, without / 8);
  }
}

/// Sketches and their scores are the same in any units, bit for bit.
TEST(KeyUnits, SketchScoresDoNotDependOnThem) {
  Random random(6);
  for (const int bits : kSketchBits) {
    const int dim = 48;
    std::vector<float> units(dim), query(dim), scaled(dim);
    for (int d = 0; d < dim; ++d) {
      units[d] = std::ldexp(1.0f, random.integer(-6, 6));
      query[d] = random.normal(1);
      scaled[d] = query[d] * units[d];
    }
    std::vector<Bf16> tile(size_t{kBlockTokens} * 2 * dim), other(tile.size());
    for (int p = 0; p < kBlockTokens; ++p) {
      for (int d = 0; d < dim; ++d) {
        const float key = random.normal(2.0f);
        tile[static_cast<size_t>(p) * 2 * dim + d] = to_bf16(key);
        other[static_cast<size_t>(p) * 2 * dim + d] = to_bf16(key / units[d]);
      }
    }
    const SketchLayout layout{dim, bits};
    const auto scores = [&](const std::vector<Bf16>& keys, const std::vector<float>& q) {
      std::vector<std::byte> sketch(static_cast<size_t>(layout.bytes()));
      sketch_block(layout, KvType::Bf16, reinterpret_cast<const std::byte*>(keys.data()), sketch.data());
      std::vector<float> result(kBlockTokens);
      sketch_scores(layout, q.data(), sketch.data(), result.data());
      return result;
    };
    EXPECT_EQ(scores(tile, query), scores(other, scaled)) << bits << " bits";
  }
}

}  // namespace
}  // namespace tidal
