// GGUF files of models with windows: which layers have one, how those rotate, what is refused.
#include <cmath>

#include "model/model.h"
#include "support/loading.h"

namespace tidal::test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

GgufWriter gemma(uint64_t layers = 3) { return small_model("gemma3", {.layers = layers}); }

/// The value of a key that is a list of numbers of this type.
template <typename Value>
Bytes list(gguf_type type, const std::vector<Value>& values) {
  Bytes bytes;
  append(bytes, static_cast<uint32_t>(type));
  append(bytes, static_cast<uint64_t>(values.size()));
  for (const Value value : values) append(bytes, value);
  return bytes;
}

constexpr const char* kWindow = "gemma3.attention.sliding_window";
constexpr const char* kPattern = "gemma3.attention.sliding_window_pattern";

TEST(GgufWindows, ThePatternSaysWhichLayersHaveOne) {
  GgufWriter writer = gemma(7);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 0, 32, 0, 32, 0, 32));
  writer.set(kPattern, 3u);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 32, 0, 32, 32, 0, 32));
  writer.set(kPattern, 0u);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 32, 32, 32, 32, 32, 32));
  writer.set(kPattern, 1u);
  EXPECT_THAT(hyperparameters(writer).windows, IsEmpty());
  writer.set(kPattern, ~0u);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 32, 32, 32, 32, 32, 32));
  writer.erase(kPattern);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 32, 32, 32, 32, 0, 32)) << "the family's";
  EXPECT_EQ(
      hyperparameters(small_model("olmo2", {.layers = 5}).erase("olmo2.attention.sliding_window_pattern")).windows,
      (std::vector<int>{32, 32, 32, 0, 32}));
}

TEST(GgufWindows, AListSaysItLayerByLayer) {
  GgufWriter writer = gemma();
  writer.set_raw(kPattern, GGUF_TYPE_ARRAY, list<uint8_t>(GGUF_TYPE_BOOL, {0, 1, 1}));
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(0, 32, 32));
  writer.set_raw(kPattern, GGUF_TYPE_ARRAY, list<int32_t>(GGUF_TYPE_INT32, {-1, 0, 7}));
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(32, 0, 32));
  writer.set_raw(kPattern, GGUF_TYPE_ARRAY, list<uint32_t>(GGUF_TYPE_UINT32, {0, 0, 0}));
  EXPECT_THAT(hyperparameters(writer).windows, IsEmpty());
  for (const std::vector<uint32_t>& wrong : {std::vector<uint32_t>{}, {1, 0}, {1, 0, 1, 0}}) {
    EXPECT_EQ(refusal(writer.set(kPattern, wrong)), "test.gguf: key 'gemma3.attention.sliding_window_pattern' has " +
                                                        std::to_string(wrong.size()) +
                                                        " values, expected one for each of 3 layers");
  }
  writer.set_raw(kPattern, GGUF_TYPE_ARRAY, list<float>(GGUF_TYPE_FLOAT32, {1, 0, 1}));
  EXPECT_EQ(refusal(writer),
            "test.gguf: key 'gemma3.attention.sliding_window_pattern' is an array of f32, expected one of u32, i32 or "
            "bool");
  writer.set(kPattern, true);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'gemma3.attention.sliding_window_pattern' has type bool, expected u32");
}

TEST(GgufWindows, AWindowMayBeMissingOrLongerThanTheContext) {
  GgufWriter writer = gemma();
  writer.set(kWindow, 0u);
  EXPECT_THAT(hyperparameters(writer).windows, IsEmpty());
  writer.erase(kWindow);
  EXPECT_THAT(hyperparameters(writer).windows, IsEmpty());
  writer.set(kWindow, 1000u);
  EXPECT_THAT(hyperparameters(writer).windows, ElementsAre(1000, 0, 1000));
  writer.set(kWindow, ~0u);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'gemma3.attention.sliding_window' is 4294967295, expected 1 to 2^24");
}

TEST(GgufWindows, LayersWithOneRotateByTheirOwnBaseWithoutScaling) {
  GgufWriter writer = gemma();
  writer.set("gemma3.rope.scaling.type", "linear").set("gemma3.rope.scaling.factor", 8.0f);
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  EXPECT_TRUE(model.layers[0].window_rope);
  EXPECT_FALSE(model.layers[1].window_rope);
  EXPECT_NEAR(model.hp.rope.frequencies[1], std::pow(10000.0, -2.0 / 16) / 8, 1e-9);
  EXPECT_NEAR(model.hp.window_rope.frequencies[1], std::pow(500.0, -2.0 / 16), 1e-9);
  writer.erase("gemma3.rope.freq_base_swa").set("gemma3.rope.freq_base", 1e6f);
  EXPECT_NEAR(hyperparameters(writer).window_rope.frequencies[1], std::pow(10000.0, -2.0 / 16), 1e-9);
  writer.set("gemma3.rope.freq_base_swa", 1.0f);
  EXPECT_EQ(refusal(writer), "test.gguf: the rope base is 1, expected a number above 1");
  GgufWriter olmo = small_model("olmo2");
  olmo.set("olmo2.rope.scaling.type", "linear").set("olmo2.rope.scaling.factor", 8.0f);
  EXPECT_NEAR(hyperparameters(olmo).window_rope.frequencies[1], std::pow(10000.0, -2.0 / 16), 1e-9);
}

TEST(GgufWindows, GemmaScalesEmbeddingsAndAtOneSizeQueries) {
  EXPECT_EQ(hyperparameters(gemma()).embedding_scale, 8.0f);
  EXPECT_EQ(hyperparameters(gemma()).activation, Activation::Gelu);
  EXPECT_FALSE(hyperparameters(gemma()).scales_queries());
  SmallShape largest{.layers = 62, .width = 100, .heads = 3, .kv_heads = 1, .ffn = 16, .head_size = 16};
  EXPECT_FLOAT_EQ(hyperparameters(small_model("gemma3", largest)).query_scale, std::sqrt(16.0f / 33));
  GgufWriter narrow = small_model("gemma3", largest);
  narrow.set("gemma3.embedding_length", 2u);
  EXPECT_EQ(refusal(narrow), "test.gguf: 3 heads are more than the width 2");
  largest.layers = 61;
  EXPECT_FALSE(hyperparameters(small_model("gemma3", largest)).scales_queries());
  GgufWriter capped = gemma();
  EXPECT_EQ(hyperparameters(capped).logit_cap, 0);
  EXPECT_EQ(hyperparameters(capped.set("gemma3.final_logit_softcapping", 30.0f)).logit_cap, 30);
  for (const float wrong : {-30.0f, 1e-4f, 1e10f}) {
    EXPECT_THAT(refusal(capped.set("gemma3.final_logit_softcapping", wrong)),
                ::testing::EndsWith("expected 0.001 to 1e+09, or 0 for no cap"));
  }
}

TEST(GgufWindows, Gemma2CapsScoresAndLogits) {
  GgufWriter writer = small_model("gemma2", {.layers = 4});
  Hyperparameters hp = hyperparameters(writer);
  EXPECT_EQ(hp.score_cap, 2.0f);
  EXPECT_EQ(hp.logit_cap, 3.0f);
  EXPECT_EQ(hp.product_cap(16), 8.0f);
  EXPECT_FALSE(hp.scales_queries());
  writer.erase("gemma2.attn_logit_softcapping").erase("gemma2.final_logit_softcapping");
  writer.erase("gemma2.attention.sliding_window").erase("gemma2.rope.freq_base_swa");
  hp = hyperparameters(writer);
  EXPECT_EQ(hp.score_cap, 50.0f);
  EXPECT_EQ(hp.logit_cap, 30.0f);
  EXPECT_THAT(hp.windows, ElementsAre(4096, 0, 4096, 0));
  EXPECT_EQ(hp.window_rope.frequencies, hp.rope.frequencies);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    GgufWriter wrong = writer;
    EXPECT_EQ(refusal(wrong.set("gemma2." + std::string(key), 0.0f)),
              "test.gguf: key '" + std::string(key) + "' is 0, expected 0.001 to 1e+09");
  }
  EXPECT_EQ(refusal(writer.set("gemma2.attention.sliding_window", 0u)),
            "test.gguf: key 'gemma2.attention.sliding_window' is 0, expected 1 to 2^24");
  const SmallShape largest{.layers = 46, .width = 100, .heads = 3, .kv_heads = 1, .ffn = 16, .head_size = 16};
  EXPECT_FLOAT_EQ(hyperparameters(small_model("gemma2", largest)).query_scale, std::sqrt(16.0f / 33));
}

TEST(GgufWindows, GptOssHasAWindowASinkAHeadAndBiases) {
  GgufWriter writer = small_model("gpt-oss", {.layers = 3});
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  EXPECT_THAT(model.hp.windows, ElementsAre(32, 0, 32));
  EXPECT_EQ(model.hp.activation, Activation::ClampedSwiGlu);
  EXPECT_TRUE(model.hp.sink_logits);
  EXPECT_EQ(model.hp.experts.ffn, 32);
  EXPECT_EQ(model.layers[2].sink_logits.cols, 4);
  EXPECT_EQ(model.layers[2].gate_biases.rows, model.hp.experts.count);
  EXPECT_NEAR(model.hp.window_rope.frequencies[1], std::pow(500.0, -2.0 / 16), 1e-9);
  writer.erase("gpt-oss.rope.freq_base_swa").set("gpt-oss.rope.scaling.factor", 4.0f);
  EXPECT_EQ(hyperparameters(writer).window_rope.frequencies, hyperparameters(writer).rope.frequencies);
  for (const char* tensor : {"attn_sinks.weight", "ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_down_exps.bias"}) {
    GgufWriter without = writer;
    without.erase_tensor("blk.1." + std::string(tensor));
    EXPECT_EQ(refusal(without), "test.gguf: these tensors are missing: blk.1." + std::string(tensor));
  }
  GgufWriter other = writer;
  other.add("blk.0.ffn_up_exps.bias", std::vector<float>(32 * 4), {32, 4});
  EXPECT_EQ(refusal(other), "test.gguf: these tensors are wrong: blk.0.ffn_up_exps.bias is [4, 32], expected [5, 32]");
  other = writer;
  EXPECT_EQ(refusal(other.set("gpt-oss.attention.sliding_window", 0u)),
            "test.gguf: key 'gpt-oss.attention.sliding_window' is 0, expected 1 to 2^24");
  EXPECT_EQ(refusal(other.erase("gpt-oss.attention.sliding_window").erase("gpt-oss.expert_feed_forward_length")),
            "test.gguf: these keys are missing: gpt-oss.expert_feed_forward_length, gpt-oss.attention.sliding_window");
}

}  // namespace
}  // namespace tidal::test
