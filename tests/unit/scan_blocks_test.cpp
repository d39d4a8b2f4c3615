// Sketches of keys, and the scores that Scan layers take from them: fast kernels against plain loops, bit for bit.
#include "backend/cpu/scan_blocks.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

constexpr int kRowPad = 5;  // floats between the scores of two heads, which nobody may touch
constexpr float kUntouched = -12345.0f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Some blocks of keys of one KV head, [64 tokens][K | V], and their sketches.
class Blocks {
 public:
  Blocks(SketchLayout layout, int count) : layout_(layout), tiles_(count), sketches_(count) {
    for (auto& tile : tiles_) tile.resize(size_t{2} * kBlockTokens * layout.head_dim, to_bf16(0.0f));
  }

  template <typename Value>
  void fill(Value value) {
    for (int b = 0; b < count(); ++b) {
      for (int p = 0; p < kBlockTokens; ++p) {
        for (int d = 0; d < layout_.head_dim; ++d) key(b, p, d) = to_bf16(value(b, p, d));
      }
    }
  }
  void sketch() {
    for (int b = 0; b < count(); ++b) {
      sketches_[b].assign(static_cast<size_t>(layout_.bytes()), std::byte{0xff});
      sketch_block(layout_, KvType::Bf16, reinterpret_cast<const std::byte*>(tiles_[b].data()), sketches_[b].data());
    }
  }
  int count() const { return static_cast<int>(tiles_.size()); }
  const SketchLayout& layout() const { return layout_; }
  Bf16& key(int b, int p, int d) { return tiles_[b][int64_t{p} * 2 * layout_.head_dim + d]; }
  std::vector<std::byte>& sketch_of(int b) { return sketches_[b]; }
  float parameter(int b, int index) const {
    Bf16 value;
    std::memcpy(&value, sketches_[b].data() + sizeof value * index, sizeof value);
    return to_float(value);
  }
  float minimum(int b, int d) const { return parameter(b, d); }
  float scale(int b, int d) const { return parameter(b, layout_.head_dim + d); }
  int code(int b, int p, int d) const {
    return std::to_integer<int>(sketches_[b][layout_.byte(p, d)]) >> layout_.shift(d) & (layout_.levels() - 1);
  }
  std::vector<const std::byte*> pointers() const {
    std::vector<const std::byte*> all;
    for (const auto& sketch : sketches_) all.push_back(sketch.data());
    return all;
  }

 private:
  SketchLayout layout_;
  std::vector<std::vector<Bf16>> tiles_;
  std::vector<std::vector<std::byte>> sketches_;
};

std::string bits_of(float value) {
  if (std::isnan(value)) return "NaN";
  char text[64];
  std::snprintf(text, sizeof text, "%08x (%g)", std::bit_cast<uint32_t>(value), static_cast<double>(value));
  return text;
}

/// `scan`: does nothing where the processor has not what it needs.
template <typename Scan>
void expect_plain_scores(const Blocks& blocks, const std::vector<float>& q, int heads, Scan&& scan) {
  const SketchLayout& layout = blocks.layout();
  const int width = blocks.count() * kBlockTokens;
  std::vector<float> scores(static_cast<size_t>(heads) * (width + kRowPad), kUntouched);
  const std::vector<const std::byte*> sketches = blocks.pointers();
  if (!scan(ScanArgs{q.data(), heads, layout, sketches.data(), blocks.count(), 0, scores.data(), width + kRowPad})) {
    return;
  }
  float expected[kBlockTokens];
  for (int h = 0; h < heads; ++h) {
    const float* own = scores.data() + h * (width + kRowPad);
    for (int b = 0; b < blocks.count(); ++b) {
      sketch_scores(layout, q.data() + h * layout.head_dim, sketches[b], expected);
      for (int p = 0; p < kBlockTokens; ++p) {
        ASSERT_EQ(bits_of(own[b * kBlockTokens + p]), bits_of(expected[p]))
            << layout.bits << " bits, " << layout.head_dim << " dims, head " << h << " of " << heads << ", block " << b
            << ", position " << p;
      }
    }
    for (int i = 0; i < kRowPad; ++i) ASSERT_EQ(own[width + i], kUntouched) << "wrote behind the last block";
  }
}

void expect_plain_scores(const Blocks& blocks, const std::vector<float>& q, int heads) {
  const auto always = [](const ScanArgs& args) {
    scan_blocks(args);
    return true;
  };
  expect_plain_scores(blocks, q, heads, always);
  expect_plain_scores(blocks, q, heads, [](const ScanArgs& args) { return scan_blocks_avx2(args); });
}

class ScanBlocks : public testing::TestWithParam<SketchLayout> {
 protected:
  SketchLayout layout_ = GetParam();
  Random random_{static_cast<uint64_t>(GetParam().head_dim * 8 + GetParam().bits)};
};

constexpr SketchLayout kLayouts[] = {{16, 1},  {16, 2},  {16, 4},  {32, 1},  {32, 2},  {32, 4},  {64, 1},  {64, 2},
                                     {64, 4},  {80, 1},  {80, 2},  {80, 4},  {96, 1},  {96, 2},  {96, 4},  {128, 1},
                                     {128, 2}, {128, 4}, {256, 1}, {256, 2}, {256, 4}, {512, 1}, {512, 2}, {512, 4}};
INSTANTIATE_TEST_SUITE_P(Layouts, ScanBlocks, testing::ValuesIn(kLayouts), [](const auto& info) {
  return "dim" + std::to_string(info.param.head_dim) + "_" + std::to_string(info.param.bits) + "bit";
});

TEST_P(ScanBlocks, RandomKeys) {
  for (int heads = 1; heads <= 16; ++heads) {
    Blocks blocks(layout_, 1 + heads % 5);
    // Channels of different ranges, as RoPE and biases make them, some of them negligible.
    std::vector<float> centre(layout_.head_dim), range(layout_.head_dim);
    for (float& c : centre) c = random_.normal(2.0f);
    for (float& r : range) r = std::exp(random_.uniform(6.0f));
    blocks.fill([&](int, int, int d) { return centre[d] + random_.normal(range[d]); });
    blocks.sketch();
    std::vector<float> q(static_cast<size_t>(heads) * layout_.head_dim);
    for (float& x : q) x = random_.normal(1.0f);
    expect_plain_scores(blocks, q, heads);
  }
}

// q times scale just beside halves of the weights' step, where rounding of the product, or its lack, tells.
TEST_P(ScanBlocks, TiesOfTheWeights) {
  constexpr int kHeads = 7;
  Blocks blocks(layout_, 2);
  blocks.fill([&](int, int p, int) { return static_cast<float>(p % layout_.levels()); });
  blocks.sketch();
  std::vector<float> q(static_cast<size_t>(kHeads) * layout_.head_dim);
  for (int h = 0; h < kHeads; ++h) {
    float* own = q.data() + h * layout_.head_dim;
    const float top = random_.uniform(1.0f) + 2.0f;
    for (int d = 0; d < layout_.head_dim; ++d) {
      const float tie = (static_cast<float>(random_.integer(-127, 126)) + 0.5f) * (top / 127.0f);
      const float neighbours[] = {tie, std::nextafter(tie, 10.0f), std::nextafter(tie, -10.0f)};
      own[d] = neighbours[random_.integer(0, 2)];
    }
    own[random_.integer(0, layout_.head_dim - 1)] = top;
  }
  expect_plain_scores(blocks, q, kHeads);
}

TEST_P(ScanBlocks, ZeroQueriesAndConstantKeys) {
  constexpr int kHeads = 5;
  Blocks blocks(layout_, 2);
  blocks.fill([](int, int, int d) { return static_cast<float>(d) - 3.25f; });
  blocks.sketch();
  std::vector<float> q(static_cast<size_t>(kHeads) * layout_.head_dim, 0.0f);
  expect_plain_scores(blocks, q, kHeads);
  for (float& x : q) x = random_.normal(1.0f);
  std::fill_n(q.begin(), layout_.head_dim, -0.0f);
  expect_plain_scores(blocks, q, kHeads);
  // A constant channel is kept exactly but for bf16, so the score of every position is q . k.
  float score[kBlockTokens];
  sketch_scores(layout_, q.data() + layout_.head_dim, blocks.sketch_of(0).data(), score);
  double exact = 0, magnitude = 0;
  for (int d = 0; d < layout_.head_dim; ++d) {
    const double product = double{q[layout_.head_dim + d]} * (d - 3.25);
    exact += product;
    magnitude += std::abs(product);
  }
  for (const float s : score) EXPECT_NEAR(s, exact, magnitude * 0x1p-8);
}

TEST_P(ScanBlocks, HugeAndTinyValues) {
  constexpr int kHeads = 6;
  for (const float factor : {1e38f, 1e19f, 1e-19f, 1e-37f, 1e-40f}) {
    Blocks blocks(layout_, 2);
    blocks.fill([&](int, int, int) { return random_.uniform(1.0f) * factor; });
    blocks.sketch();
    for (const float size : {1e30f, 1.0f, 1e-30f}) {
      std::vector<float> q(static_cast<size_t>(kHeads) * layout_.head_dim);
      for (float& x : q) x = random_.normal(size);
      expect_plain_scores(blocks, q, kHeads);
    }
  }
}

TEST_P(ScanBlocks, NoNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr int kHeads = 9;
  for (const float value : {nan, -nan, kInfinity, -kInfinity}) {
    Blocks blocks(layout_, 3);
    blocks.fill([&](int, int, int) { return random_.normal(1.0f); });
    blocks.key(1, random_.integer(0, 63), random_.integer(0, layout_.head_dim - 1)) = to_bf16(value);
    blocks.sketch();
    std::vector<float> q(static_cast<size_t>(kHeads) * layout_.head_dim);
    for (float& x : q) x = random_.normal(1.0f);
    expect_plain_scores(blocks, q, kHeads);
    q[layout_.head_dim * 2 + 7] = value;
    q[layout_.head_dim * 8] = value;
    expect_plain_scores(blocks, q, kHeads);
  }
}

TEST_P(ScanBlocks, TermsOfASoftmax) {
  for (const int heads : {1, 2, 3, 5, 7, 8, 11}) {
    Blocks blocks(layout_, 3);
    blocks.fill([&](int, int, int) { return random_.normal(1.0f); });
    blocks.sketch();
    std::vector<float> q(static_cast<size_t>(heads) * layout_.head_dim), reference(heads), sum(heads, kUntouched);
    for (float& x : q) x = random_.normal(1.0f);
    for (float& r : reference) r = random_.uniform(20.0f);
    const float scale = 1.44f / std::sqrt(static_cast<float>(layout_.head_dim));
    constexpr int kWidth = 3 * kBlockTokens;
    std::vector<float> scores(static_cast<size_t>(heads) * kWidth), terms = scores;
    const std::vector<const std::byte*> sketches = blocks.pointers();
    ScanArgs args{q.data(), heads, layout_, sketches.data(), 3, 0, scores.data(), kWidth};
    scan_blocks(args);
    args.scores = terms.data();
    scan_terms(args, {scale, reference.data(), sum.data()});
    for (int h = 0; h < heads; ++h) {
      double total = 0;
      for (int i = h * kWidth; i < (h + 1) * kWidth; ++i) {
        const double scaled = double{scores[i]} * scale, exact = std::exp2(scaled - reference[h]);
        // Base and factor are scaled and rounded before they meet: each is less than 64 here, beside the reference.
        EXPECT_NEAR(terms[i], exact, exact * (1e-6 + (64 + std::abs(scaled) + std::abs(reference[h])) * 0x1p-23));
        total += terms[i];
      }
      EXPECT_NEAR(sum[h], total, total * 64 * 0x1p-24);
    }
    reference[0] = -kInfinity;
    scan_terms(args, {scale, reference.data(), sum.data()});
    EXPECT_FALSE(std::isfinite(sum[0]));
    if (heads > 1) {
      EXPECT_TRUE(std::isfinite(sum[1]));
    }
    reference[0] = -200;
    scan_terms(args, {scale, reference.data(), sum.data()});
    EXPECT_FALSE(std::isfinite(sum[0])) << "terms beyond float32";
    reference[0] = 200;
    scan_terms(args, {scale, reference.data(), sum.data()});
    EXPECT_EQ(sum[0], 0) << "terms below float32";
  }
}

TEST_P(ScanBlocks, CodesAreStepsOfTheRange) {
  Blocks blocks(layout_, 1);
  blocks.fill([&](int, int, int d) { return random_.normal(1.0f + static_cast<float>(d)); });
  blocks.sketch();
  for (int d = 0; d < layout_.head_dim; ++d) {
    float low = to_float(blocks.key(0, 0, d)), high = low;
    for (int p = 1; p < kBlockTokens; ++p) {
      low = std::min(low, to_float(blocks.key(0, p, d)));
      high = std::max(high, to_float(blocks.key(0, p, d)));
    }
    const double step = (double{high} - low) / layout_.levels();
    for (int p = 0; p < kBlockTokens; ++p) {
      // Two products and a quotient of float32, each off by 2^-24 of a position of up to 16 steps.
      const double at = (double{to_float(blocks.key(0, p, d))} - low) / step, slack = 16 * 3 * 0x1p-24;
      EXPECT_GE(at, blocks.code(0, p, d) - slack);
      EXPECT_LE(at, blocks.code(0, p, d) + 1 + slack);
    }
  }
}

// Codes whose keys are spread evenly over their step: the best line runs through the steps' middles, so no key is
// further than half a step from it.
TEST_P(ScanBlocks, EvenKeysAreWithinHalfAStep) {
  const int per_code = kBlockTokens / layout_.levels();
  const float step = 0.5f;
  Blocks blocks(layout_, 1);
  blocks.fill([&](int, int p, int d) {
    const int at = (p * 13 + d) % kBlockTokens;  // every one of 64 once
    return static_cast<float>(d % 7) + step * static_cast<float>(at) / static_cast<float>(per_code);
  });
  blocks.sketch();
  // The range ends at the highest key, 1 / per_code of a step short of where the last step would end: later steps begin
  // up to so much earlier. bf16 keeps 8 bits: the error of a key, the minimum and the scale, of at most 6, 7 and 1
  // step.
  const double reach = step * layout_.levels();
  const double rounding = (6 + reach) * 0x1p-8 + 7 * 0x1p-8 + reach * 0x1p-8;
  for (int d = 0; d < layout_.head_dim; ++d) {
    for (int p = 0; p < kBlockTokens; ++p) {
      const double fitted = blocks.minimum(0, d) + double{blocks.scale(0, d)} * blocks.code(0, p, d);
      EXPECT_NEAR(fitted, to_float(blocks.key(0, p, d)), step / 2 + step / per_code + rounding) << "channel " << d;
    }
  }
}

// No other minimum and scale have a lower sum of squares, beyond what rounding these two to bf16 costs.
TEST_P(ScanBlocks, MinimumAndScaleAreLeastSquares) {
  Blocks blocks(layout_, 1);
  blocks.fill([&](int, int, int d) { return random_.normal(1.0f) + static_cast<float>(d % 5); });
  blocks.sketch();
  for (int d = 0; d < layout_.head_dim; ++d) {
    const auto squares = [&](double minimum, double scale) {
      double sum = 0;
      for (int p = 0; p < kBlockTokens; ++p) {
        const double error = minimum + scale * blocks.code(0, p, d) - to_float(blocks.key(0, p, d));
        sum += error * error;
      }
      return sum;
    };
    const double minimum = blocks.minimum(0, d), scale = blocks.scale(0, d), found = squares(minimum, scale);
    // The sum is a parabola: a change beyond twice what a number was rounded by leads uphill. The scale was rounded
    // first and the minimum fitted to it, so the scale's turn is with a minimum that follows it.
    double mean_code = 0;
    for (int p = 0; p < kBlockTokens; ++p) mean_code += blocks.code(0, p, d) / double{kBlockTokens};
    for (const double sign : {-1.0, 1.0}) {
      // Half a unit in the last place of 8 bits, and float32 sums over 64 positions.
      const double least = std::abs(minimum) * 0x1p-8 + 1e-5, slope = std::abs(scale) * 0x1p-8 + 1e-5;
      EXPECT_GT(squares(minimum + sign * 2.01 * least, scale), found) << "channel " << d;
      const double turn = sign * 2.01 * slope, centred = minimum - turn * mean_code;
      EXPECT_GT(squares(centred, scale + turn) + kBlockTokens * least * least, found) << "channel " << d;
    }
  }
}

}  // namespace
}  // namespace tidal
