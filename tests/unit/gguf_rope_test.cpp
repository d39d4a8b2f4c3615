// The keys and tensors that scale RoPE: what they say, and that llama.cpp reads the same from them.
#include <cmath>

#include "support/loading.h"

namespace tidal::test {
namespace {

constexpr int kPairs = 8;

double plain(int pair, double base = 10000.0) { return std::pow(base, -2.0 * pair / 16); }

void expect_frequencies(const GgufWriter& writer, const std::vector<double>& expected, double magnitude = 1.0) {
  const Rope rope = hyperparameters(writer).rope;
  EXPECT_EQ(rope.dims, 16);
  ASSERT_EQ(rope.frequencies.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(rope.frequencies[i], expected[i], 1e-6 * expected[i]) << "pair " << i;  // keys are float32
  }
  EXPECT_NEAR(rope.magnitude, magnitude, 1e-6);
}

std::vector<double> divided(double factor) {
  std::vector<double> frequencies;
  for (int i = 0; i < kPairs; ++i) frequencies.push_back(plain(i) / factor);
  return frequencies;
}

TEST(GgufRope, NoScaling) {
  GgufWriter writer = small_model("llama");
  expect_frequencies(writer, divided(1));
  expect_frequencies(writer.set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 8.0f), divided(1));
  expect_frequencies(writer.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 1.0f),
                     divided(1));
  GgufWriter other = small_model("qwen2");
  other.set("qwen2.rope.freq_base", 500000.0f);
  std::vector<double> frequencies;
  for (int i = 0; i < kPairs; ++i) frequencies.push_back(plain(i, 500000.0));
  expect_frequencies(other, frequencies);
}

TEST(GgufRope, Linear) {
  GgufWriter writer = small_model("llama");
  writer.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4.0f);
  expect_frequencies(writer, divided(4));
  writer.erase("llama.rope.scaling.type");  // a factor alone means linear
  expect_frequencies(writer, divided(4));
  writer.erase("llama.rope.scaling.factor").set("llama.rope.scale_linear", 2.0f);  // the key of old files
  expect_frequencies(writer, divided(2));
  writer.set("llama.rope.scaling.factor", 8.0f);  // the new key wins
  expect_frequencies(writer, divided(8));
}

TEST(GgufRope, FactorsOfLlama3) {
  GgufWriter writer = small_model("llama");
  std::vector<float> factors;
  std::vector<double> expected;
  for (int i = 0; i < kPairs; ++i) {
    factors.push_back(1.0f + static_cast<float>(i));
    expected.push_back(plain(i) / (1.0 + i));
  }
  writer.add("rope_freqs.weight", factors, {kPairs});
  expect_frequencies(writer, expected);
}

TEST(GgufRope, WrongFactors) {
  const auto with = [](const std::vector<float>& factors, const std::vector<uint64_t>& sizes) {
    GgufWriter writer = small_model("llama");
    writer.add("rope_freqs.weight", factors, sizes);
    return refusal(writer);
  };
  const std::string start = "test.gguf: tensor 'rope_freqs.weight' ";
  EXPECT_EQ(with(std::vector<float>(7, 1.0f), {7}), start + "is f32 [1, 7], expected f32 [8]");
  EXPECT_EQ(with(std::vector<float>(16, 1.0f), {8, 2}), start + "is f32 [2, 8], expected f32 [8]");
  EXPECT_EQ(with({1, 1, 0, 1, 1, 1, 1, 1}, {8}), start + "holds 0, expected positive numbers");
  EXPECT_EQ(with({1, 1, -3, 1, 1, 1, 1, 1}, {8}), start + "holds -3, expected positive numbers");
  EXPECT_EQ(with({1, 1, NAN, 1, 1, 1, 1, 1}, {8}), start + "holds nan, expected positive numbers");
  EXPECT_EQ(with({1, 1, INFINITY, 1, 1, 1, 1, 1}, {8}), start + "holds inf, expected positive numbers");
  GgufWriter writer = small_model("llama");
  writer.add("rope_freqs.weight", GGML_TYPE_F16, {8});
  EXPECT_EQ(refusal(writer), start + "is f16 [1, 8], expected f32 [8]");
}

TEST(GgufRope, Yarn) {
  GgufWriter writer = small_model("qwen2");
  writer.set("qwen2.rope.scaling.type", "yarn")
      .set("qwen2.rope.scaling.factor", 4.0f)
      .set("qwen2.rope.scaling.original_context_length", 4096u);
  // arXiv 2309.00071: a pair that turns more than 32 times over the original context keeps its frequency, one that
  // turns less than once is stretched fully; the magnitude grows by 0.1 ln(factor) + 1.
  const Rope rope = hyperparameters(writer).rope;
  EXPECT_NEAR(rope.magnitude, 0.1 * std::log(4.0) + 1.0, 1e-6);
  for (int i = 0; i < kPairs; ++i) {
    const double turns = 4096 * plain(i) / (2 * M_PI);
    if (turns > 100) {
      EXPECT_NEAR(rope.frequencies[i], plain(i), 1e-9) << "pair " << i;
    } else if (turns < 0.3) {
      EXPECT_NEAR(rope.frequencies[i], plain(i) / 4, 1e-9) << "pair " << i;
    } else {
      EXPECT_LE(rope.frequencies[i], plain(i)) << "pair " << i;
      EXPECT_GE(rope.frequencies[i], plain(i) / 4) << "pair " << i;
    }
  }
  const auto changed = [&](const char* key, auto value) {
    GgufWriter other = writer;
    other.set(std::string("qwen2.rope.scaling.") + key, value);
    const Rope with = hyperparameters(other).rope;
    return with.frequencies != rope.frequencies || with.magnitude != rope.magnitude;
  };
  EXPECT_TRUE(changed("original_context_length", 512u));
  EXPECT_FALSE(changed("original_context_length", 4096u));
  EXPECT_TRUE(changed("factor", 8.0f));
  EXPECT_TRUE(changed("attn_factor", 0.5f));
  // llama.cpp does not read these for our architectures.
  EXPECT_FALSE(changed("yarn_beta_fast", 16.0f));
  EXPECT_FALSE(changed("yarn_beta_slow", 4.0f));
  EXPECT_FALSE(changed("yarn_ext_factor", 0.5f));
  EXPECT_FALSE(changed("yarn_attn_factor", 0.5f));
  EXPECT_FALSE(changed("yarn_log_multiplier", 0.1f));
}

TEST(GgufRope, UnknownScalingIsRefusedByName) {
  GgufWriter writer = small_model("llama");
  writer.set("llama.rope.scaling.type", "longrope");
  EXPECT_EQ(refusal(writer), "test.gguf: rope scaling 'longrope' is not supported, expected none, linear or yarn");
}

}  // namespace
}  // namespace tidal::test
