// The CPU backend's vector code in every instruction set that it was compiled for and this machine has. The operations
// themselves run in the best one only.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "backend/cpu/attend_rows.h"
#include "backend/cpu/vector_ops.h"
#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kFloat = 0x1p-24;

class Kernel : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
  Random random_{17};
};

INSTANTIATE_TEST_SUITE_P(Targets, Kernel, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

/// Some heads over a context, by one kernel in `parts` pieces.
struct Attended {
  std::vector<float> out, scores, maximum, sum;
};

template <typename Function>
Attended attend(Function&& kernel, const HostCache& cache, const Chunk& chunk, const std::vector<float>& q, int heads,
                int parts) {
  const std::vector<std::byte> bytes = cache.bytes();  // of one KV head
  const int dim = cache.head_dim, context = chunk.context();
  const std::ptrdiff_t stride = heads * (dim + 2);
  std::vector<float> memory(stride * parts);
  Attended result{std::vector<float>(heads * dim), std::vector<float>(heads * (context + 3), -1.0f),
                  std::vector<float>(heads), std::vector<float>(heads)};
  const auto part = [&](int p) {
    float* output = memory.data() + p * stride;
    return AttentionPart{output, output + heads * dim, output + heads * dim + heads};
  };
  for (int p = 0; p < parts; ++p) {
    const int begin = context * p / parts, end = context * (p + 1) / parts;
    const int64_t row_bytes = cache.layout().bytes();
    std::vector<const std::byte*> rows;
    for (int i = begin; i < end; ++i) {
      rows.push_back(bytes.data() +
                     (int64_t{chunk.blocks[i / kBlockTokens]} * kBlockTokens + i % kBlockTokens) * row_bytes);
    }
    AttendRowsArgs args;
    args.type = cache.type;
    args.q = q.data();
    args.heads = heads;
    args.head_dim = dim;
    args.rows = rows.data();
    args.count = end - begin;
    args.scale = 1 / std::sqrt(static_cast<float>(dim));
    args.scores = result.scores.data() + begin;
    args.scores_stride = context + 3;
    args.part = part(p);
    kernel(args);
  }
  merge_parts(part(0), stride, parts, heads, dim, nullptr, result.out.data(), result.maximum.data(), result.sum.data());
  return result;
}

template <typename Function>
void expect_attends(Function&& kernel, bool bf16, Random& random, KvType type = KvType::Bf16) {
  for (const int dim : {16, 48, 64, 80, 96, 112, 128, 192, 240, 256, 512}) {
    for (const int heads : {1, 2, 3, 5, 7, 8, 9, 16}) {
      for (const int context : {1, 15, 16, 17, 63, 64, 65, 130}) {
        const Hyperparameters hp = attention_shape(heads, 1, dim);
        const HostBatch batch({{context - 1, 1}}, hp.vocab, random);
        const HostCache cache = random_cache(hp, batch.blocks(), random, type);
        const std::vector<float> q = random.uniform(hp.q_width(), 3.0f);
        const Chunk& chunk = batch->chunks[0];
        Device reference("reference");
        reference.begin(hp, batch);
        const Rows out = reference.rows(1, hp.q_width());
        reference->attend(*batch, 0, reference.rows(q, hp.q_width()), reference.cache(cache), {}, out);
        const std::vector<float> expected = reference.read(out);
        const std::vector<double> bounds = attention_bounds(hp, batch, cache, q, bf16);
        std::vector<float> key(dim);
        for (const int parts : {1, std::min(3, context)}) {
          const Attended got = attend(kernel, cache, chunk, q, heads, parts);
          expect_close("attend_rows", got.out, expected, bounds);
          for (int h = 0; h < heads; ++h) {
            for (int p = 0; p < context; ++p) {
              double sum = 0, magnitudes = 0, squares = 0;
              cache.read(chunk, 0, p, key.data(), nullptr);
              for (int d = 0; d < dim; ++d) {
                const double product = static_cast<double>(q[h * dim + d]) * key[d];
                sum += product;
                magnitudes += std::abs(product);
                squares += product * product;
              }
              const double bound = 2 * (dim + 8) * kFloat * magnitudes + (bf16 ? 7 * 0x1p-8 * std::sqrt(squares) : 0.0);
              EXPECT_NEAR(got.scores[h * (context + 3) + p], sum, bound);
            }
            for (int p = context; p < context + 3; ++p) {
              EXPECT_EQ(got.scores[h * (context + 3) + p], -1.0f) << "wrote scores beyond the rows";
            }
          }
          if (testing::Test::HasFailure()) {
            FAIL() << "head size " << dim << ", " << heads << " heads, " << context << " rows, " << parts << " parts";
          }
        }
      }
    }
  }
}

TEST_P(Kernel, AttendRowsInFloat32) {
  for (const KvType type : {KvType::Bf16, KvType::Q8}) expect_attends(attend_rows_f32, false, random_, type);
}

TEST(Bf16Kernel, AttendRows) {
  AttendRowsArgs none;
  float output[16], maximum, sum, q[16] = {};
  none.q = q;
  none.heads = 1;
  none.head_dim = 16;
  none.part = {output, &maximum, &sum};
  if (!attend_rows_bf16(none)) GTEST_SKIP() << "this processor has no AVX512-BF16";
  Random random(18);
  expect_attends([](const AttendRowsArgs& args) { ASSERT_TRUE(attend_rows_bf16(args)); }, true, random);
}

class Q8Kernel : public testing::Test {
 protected:
  void SetUp() override {
    AttendRowsArgs none;
    float output[16], maximum, sum, q[16] = {};
    none.q = q;
    none.heads = 1;
    none.head_dim = 16;
    none.type = KvType::Q8;
    none.part = {output, &maximum, &sum};
    if (!attend_rows_q8(none)) GTEST_SKIP() << "this processor has no AVX512-VNNI";
  }
};

TEST_F(Q8Kernel, AttendRows) {
  Random random(19);
  // What is rounded to 16 bits is within what bf16 may be off by.
  expect_attends([](const AttendRowsArgs& args) { ASSERT_TRUE(attend_rows_q8(args)); }, true, random, KvType::Q8);
}

// The first position of a text often has nearly all of a head's weight and next to no value: then the output is that of
// positions whose weights are far below the highest.
TEST_F(Q8Kernel, LargeWeightsOfSmallValues) {
  constexpr int kHeads = 3, kContext = 60;
  constexpr double kAhead = 11;  // of the softmax's arguments of the others
  Random random(20);
  for (const int dim : {64, 80, 128}) {
    const Hyperparameters hp = attention_shape(kHeads, 1, dim);
    const HostBatch batch({{kContext - 1, 1}}, hp.vocab, random);
    const Chunk& chunk = batch->chunks[0];
    HostCache cache = random_cache(hp, batch.blocks(), random, KvType::Q8);
    std::vector<float> q = random.uniform(hp.q_width(), 0.5f);
    for (float& value : q) value += 1.0f;
    Bf16* const first = cache.row(chunk, 0, 0);
    for (int d = 0; d < dim; ++d) {
      first[d] = to_bf16(static_cast<float>(kAhead / std::sqrt(static_cast<double>(dim))));
      first[dim + d] = to_bf16(random.uniform(1e-4f));
    }
    const auto kernel = [](const AttendRowsArgs& args) { ASSERT_TRUE(attend_rows_q8(args)); };
    const Attended got = attend(kernel, cache, chunk, q, kHeads, 1);
    const Attended exact = attend(attend_rows_f32, cache, chunk, q, kHeads, 1);
    expect_close("attend_rows", got.out, exact.out, attention_bounds(hp, batch, cache, q, true));
    for (const float sum : exact.sum) EXPECT_LT(sum, 1.01f) << "of terms, of which the first is 1";
  }
}

/// Lengths around whole vectors of any width.
constexpr int kCounts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 1000};

TEST_P(Kernel, RmsNorm) {
  for (const int count : kCounts) {
    const std::vector<float> x = random_.uniform(count, 3.0f), weight = random_.uniform(count, 2.0f);
    std::vector<float> got(count + 1, 7.0f);
    rms_norm(x.data(), weight.data(), count, 1e-5f, got.data());
    double squares = 0;
    for (const float value : x) squares += static_cast<double>(value) * value;
    for (int i = 0; i < count; ++i) {
      const double expected = x[i] / std::sqrt(squares / count + 1e-5f) * weight[i];
      EXPECT_NEAR(got[i], expected, (count / 2.0 + 8) * kFloat * std::abs(expected));
    }
    EXPECT_EQ(got[count], 7.0f) << "wrote beyond the end";
  }
}

TEST_P(Kernel, Activates) {
  for (const Activation activation : kActivations) {
    for (const int count : kCounts) {
      std::vector<float> gate = random_.uniform(count, 20.0f), up = random_.uniform(count, 2.0f), got(count + 1, 7.0f);
      activate(activation, gate.data(), up.data(), count, got.data());
      for (int i = 0; i < count; ++i) {
        const auto [g, u] = clamped(activation, gate[i], up[i]);
        const double exponent = activation_exponent(activation, g);
        const double expected = g / (1 + std::exp(-exponent)) * u;
        // Four operations round the exponent; below exp(-88) the kernel takes that for 0.
        const double bound = (16 + 4 * std::abs(exponent)) * kFloat * std::abs(expected) + 40 * std::exp(-88.0);
        EXPECT_NEAR(got[i], expected, bound) << gate[i];
      }
      EXPECT_EQ(got[count], 7.0f);
    }
  }
  const float gate[] = {kInfinity, -200.0f, 200.0f, std::nanf(""), 0.0f, -0.0f};
  const float ones[] = {1, 1, 1, 1, 1, 1};
  float got[6];
  for (const Activation activation : kActivations) {
    activate(activation, gate, ones, 6, got);
    const bool bounded = activation == Activation::ClampedSwiGlu;
    EXPECT_EQ(got[0], bounded ? got[2] : kInfinity);
    EXPECT_NEAR(got[1], 0.0f, 1e-30);
    EXPECT_NEAR(got[2], bounded ? 14.0f : 200.0f, 1e-3);
    EXPECT_TRUE(std::isnan(got[3]));
    EXPECT_EQ(got[4], 0.0f);
    EXPECT_EQ(got[5], 0.0f);
  }
}

TEST_P(Kernel, AddAndScale) {
  for (const int count : kCounts) {
    const std::vector<float> from = random_.uniform(count, 3.0f), to = random_.uniform(count + 1, 3.0f);
    std::vector<float> sum = to, product = to;
    add_to(from.data(), count, sum.data());
    scale_by(0.3f, count, product.data());
    for (int i = 0; i < count; ++i) {
      EXPECT_EQ(sum[i], to[i] + from[i]);
      EXPECT_EQ(product[i], to[i] * 0.3f);
    }
    EXPECT_EQ(sum[count], to[count]);
    EXPECT_EQ(product[count], to[count]);
  }
}

TEST_P(Kernel, FloatsToBf16) {
  for (const int count : kCounts) {
    std::vector<float> from = random_.uniform(count, 3.0f);
    for (float& value : from) {
      if (random_.integer(0, 3) == 0)
        value = std::bit_cast<float>(static_cast<uint32_t>(random_.integer(0, 1 << 30)) * 4);
      if (random_.integer(0, 9) == 0) value = std::bit_cast<float>(0xffffffffu);
    }
    std::vector<Bf16> got(count + 1, Bf16{77});
    floats_to_bf16(from.data(), count, got.data());
    for (int i = 0; i < count; ++i) EXPECT_EQ(got[i].bits, to_bf16(from[i]).bits);
    EXPECT_EQ(got[count].bits, 77);
  }
}

TEST_P(Kernel, PoolMax) {
  const float nan = std::nanf("");
  for (const int count : kCounts) {
    std::vector<float> scores(count), before(count + 1);
    for (float& value : scores) value = random_.integer(0, 4) ? random_.uniform(1.0f) : nan;
    for (float& value : before) value = random_.integer(0, 4) ? random_.uniform(1.0f) : -kInfinity;
    before[0] = nan;
    std::vector<float> got = before;
    pool_max(scores.data(), count, got.data());
    for (int i = 0; i < count; ++i) {
      const float expected = std::fmax(before[i], scores[i]);
      EXPECT_TRUE(got[i] == expected || (std::isnan(got[i]) && std::isnan(expected))) << i;
    }
    EXPECT_EQ(got[count], before[count]);
  }
}

TEST_P(Kernel, PoolProbabilities) {
  for (const int count : kCounts) {
    std::vector<float> scores = random_.uniform(count, 30.0f), before = random_.uniform(count + 1, 1.0f);
    scores[0] = -kInfinity;
    std::vector<float> got = before;
    pool_probabilities(scores.data(), count, 4.0f, 0.125f, 0.25f, got.data());
    for (int i = 0; i < count; ++i) {
      const double share = std::exp(scores[i] * 0.125 - 4.0) * 0.25;
      EXPECT_NEAR(got[i], before[i] + share, kFloat * (16 * share + std::abs(before[i] + share)));
    }
    EXPECT_EQ(got[count], before[count]);
  }
}

TEST_P(Kernel, EqualScoresGetEqualProbabilities) {
  // Ties must stay ties wherever in a vector, or behind the last whole one, a position falls.
  const std::vector<float> scores(101, 1.2345f);
  std::vector<float> got(101, 0.1f);
  pool_probabilities(scores.data(), 101, 1.7f, 0.3f, 0.01f, got.data());
  for (const float value : got) EXPECT_EQ(value, got[0]);
}

TEST_P(Kernel, SoftmaxStep) {
  for (const int count : kCounts) {
    float maximum = -kInfinity, sum = 0;
    double expected_sum = 0, top = -std::numeric_limits<double>::infinity();
    for (int step = 0; step < 3; ++step) {
      const std::vector<float> scores = random_.uniform(count, 10.0f);
      std::vector<float> weights = scores;
      const float before = maximum;
      const float shrink = softmax_step(weights.data(), count, 0.5f, maximum, sum);
      const double old = top;
      for (const float score : scores) top = std::max(top, score * 0.5);
      expected_sum *= step == 0 ? 0.0 : std::exp(old - top);
      EXPECT_EQ(maximum, static_cast<float>(top));
      EXPECT_NEAR(shrink, step == 0 ? 0.0 : std::exp(static_cast<double>(before) - top), 4 * kFloat);
      for (int i = 0; i < count; ++i) {
        const double weight = std::exp(scores[i] * 0.5 - top);
        EXPECT_NEAR(weights[i], weight, 16 * kFloat * weight);
        expected_sum += weight;
      }
      EXPECT_NEAR(sum, expected_sum, (3.0 * count + 24) * kFloat * expected_sum);
    }
  }
}

}  // namespace
}  // namespace tidal::parity
