// Gemma 4 files: what their keys say of each layer, what they may lack, what is refused.
#include <cmath>

#include "model/model.h"
#include "support/loading.h"
#include "support/small_gemma4.h"

namespace tidal::test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const SmallGemma4 kWithInputs{
    .layers = 6, .keys_as_values = false, .shared_kv = 2, .double_wide = true, .layer_input = 16};

struct Loaded {
  explicit Loaded(const GgufWriter& writer) : bytes(writer.bytes()), model(load_bytes(bytes, bytes.size())) {}
  Bytes bytes;
  Model model;
};

TEST(GgufGemma4, LayersAreOfTwoKinds) {
  const Loaded loaded(small_gemma4());
  const Hyperparameters& hp = loaded.model.hp;
  EXPECT_THAT(hp.windows, ElementsAre(32, 0));
  EXPECT_EQ(hp.kv(0), (KvShape{2, 16}));
  EXPECT_EQ(hp.kv(1), (KvShape{1, 32}));
  EXPECT_EQ(hp.embedding_scale, 8.0f);
  EXPECT_EQ(hp.logit_cap, 3.0f);
  EXPECT_EQ(hp.activation, Activation::Gelu);
  EXPECT_TRUE(hp.value_norm);
  EXPECT_NEAR(hp.window_rope.frequencies[1], std::pow(500.0, -2.0 / 16), 1e-9);
  EXPECT_NEAR(hp.rope.frequencies[1], std::pow(10000.0, -2.0 / 32), 1e-9);
  EXPECT_LT(hp.rope.frequencies[4], 1e-29) << "does not rotate";
  EXPECT_FLOAT_EQ(loaded.model.layers[0].query_scale, 4.0f);
  EXPECT_FLOAT_EQ(loaded.model.layers[1].query_scale, std::sqrt(32.0f));
  EXPECT_TRUE(loaded.model.layers[0].wv);
  EXPECT_FALSE(loaded.model.layers[1].wv);
  EXPECT_FALSE(loaded.model.layer_inputs);
}

TEST(GgufGemma4, KeysThatMayBeMissing) {
  GgufWriter writer = small_gemma4();
  writer.erase("gemma4.final_logit_softcapping").erase("gemma4.attention.shared_kv_layers");
  writer.erase("gemma4.rope.freq_base_swa");
  const Hyperparameters hp = hyperparameters(writer);
  EXPECT_EQ(hp.logit_cap, 30.0f);
  EXPECT_NEAR(hp.window_rope.frequencies[1], std::pow(10000.0, -2.0 / 16), 1e-9);
  EXPECT_EQ(hyperparameters(writer.set("gemma4.final_logit_softcapping", 0.0f)).logit_cap, 0);
}

TEST(GgufGemma4, KeysThatMustBeThere) {
  for (const char* key : {"attention.key_length_swa", "attention.value_length_swa", "attention.sliding_window",
                          "attention.sliding_window_pattern", "embedding_length_per_layer_input"}) {
    const std::string name = "gemma4." + std::string(key);
    EXPECT_EQ(refusal(small_gemma4().erase(name)), "test.gguf: these keys are missing: " + name);
  }
  EXPECT_EQ(refusal(small_gemma4().set("gemma4.attention.sliding_window_pattern", 2u)),
            "test.gguf: these keys are missing: gemma4.attention.sliding_window_pattern")
      << "a number is no list";
  EXPECT_EQ(refusal(small_gemma4({.experts = 4}).erase("gemma4.expert_feed_forward_length")),
            "test.gguf: these keys are missing: gemma4.expert_feed_forward_length");
}

TEST(GgufGemma4, ListsOfOtherLengths) {
  using Values = std::vector<uint32_t>;
  for (const char* key : {"attention.head_count_kv", "attention.sliding_window_pattern", "feed_forward_length"}) {
    for (const Values& values : {Values{}, Values{1}, Values{1, 2, 1}}) {
      EXPECT_EQ(refusal(small_gemma4().set("gemma4." + std::string(key), values)),
                fmt::format("test.gguf: key 'gemma4.{}' has {} values, expected one for each of 2 layers", key,
                            values.size()));
    }
  }
}

TEST(GgufGemma4, HeadsThatDoNotFit) {
  using Values = std::vector<uint32_t>;
  const auto with = [](const char* key, const auto& value) {
    return refusal(small_gemma4({.layers = 4}).set("gemma4." + std::string(key), value));
  };
  EXPECT_EQ(with("attention.head_count_kv", Values{2, 1, 1, 1}),
            "test.gguf: layers with a window have 2 and 1 KV heads, expected all of them to have as many");
  EXPECT_EQ(
      with("attention.head_count_kv", Values{2, 1, 2, 4}),
      "test.gguf: layers that read the whole context have 1 and 4 KV heads, expected all of them to have as many");
  EXPECT_EQ(with("attention.head_count_kv", Values{2, 0, 2, 0}),
            "test.gguf: layer 1 has 0 KV heads, expected 1 to the 4 attention heads");
  EXPECT_EQ(with("attention.head_count_kv", Values{~0u, 1, ~0u, 1}),
            "test.gguf: layer 0 has 4294967295 KV heads, expected 1 to the 4 attention heads");
  EXPECT_EQ(with("attention.head_count_kv", Values{3, 1, 3, 1}),
            "test.gguf: 4 attention heads cannot share 3 KV heads evenly");
  EXPECT_EQ(with("attention.key_length_swa", 32u),
            "test.gguf: keys and values of different head sizes are not supported");
  EXPECT_EQ(
      with("rope.dimension_count_swa", 32u),
      "test.gguf: rope rotates 32 elements in layers with a window, expected an even number up to the head size 16");
  GgufWriter odd = small_gemma4();
  odd.set("gemma4.attention.key_length_swa", 24u).set("gemma4.attention.value_length_swa", 24u);
  EXPECT_EQ(refusal(odd), "test.gguf: the head size is 24, expected a multiple of 16 up to 512");
}

TEST(GgufGemma4, LayersMayShareKeysAndValues) {
  const Loaded loaded(small_gemma4(kWithInputs));
  const Hyperparameters& hp = loaded.model.hp;
  EXPECT_EQ(hp.kv_layer(3), 3);
  EXPECT_EQ(hp.kv_layer(4), 2);
  EXPECT_EQ(hp.kv_layer(5), 3);
  EXPECT_FALSE(loaded.model.layers[4].wk);
  EXPECT_FALSE(loaded.model.layers[5].k_norm);
  EXPECT_EQ(hp.kv_bytes_per_token(), 2 * (hp.kv(0).row_bytes() + hp.kv(1).row_bytes())) << "counted once";
  EXPECT_THAT(hp.ffns, ElementsAre(96, 96, 96, 96, 192, 192));
  EXPECT_EQ(hp.ffn, 192);
  EXPECT_EQ(loaded.model.layers[4].gate.rows, 192);
}

TEST(GgufGemma4, SharingThatDoesNotFit) {
  const auto sharing = [](uint32_t layers) {
    return refusal(small_gemma4(kWithInputs).set("gemma4.attention.shared_kv_layers", layers));
  };
  for (const uint32_t layers : {5u, 6u, 100u}) {
    EXPECT_EQ(sharing(layers),
              fmt::format("test.gguf: {} of 6 layers share the K and V of earlier ones, expected two or "
                          "more with their own",
                          layers));
  }
  EXPECT_EQ(sharing(~0u), "test.gguf: key 'gemma4.attention.shared_kv_layers' is 4294967295, expected 1 to 2^24");
  EXPECT_EQ(sharing(3),
            "test.gguf: layer 3 shares the K and V of layer 2, expected the last one of its kind that has its "
            "own");
  EXPECT_THAT(sharing(0), ::testing::StartsWith("test.gguf: these tensors are missing: blk.4.attn_k.weight"));
}

TEST(GgufGemma4, LayersMayHaveInputs) {
  const Loaded loaded(small_gemma4(kWithInputs));
  EXPECT_EQ(loaded.model.hp.layer_input, 16);
  EXPECT_EQ(loaded.model.layer_inputs.embedding.cols, 6 * 16);
  EXPECT_EQ(loaded.model.layer_inputs.projection.rows, 6 * 16);
  EXPECT_EQ(loaded.model.layers[5].input_proj.cols, 16);
  for (const std::string name : {"per_layer_token_embd.weight", "per_layer_proj_norm.weight", "blk.3.proj.weight"}) {
    GgufWriter writer = small_gemma4(kWithInputs);
    writer.erase_tensor(name);
    EXPECT_EQ(refusal(writer), "test.gguf: these tensors are missing: " + name);
  }
  GgufWriter writer = small_gemma4(kWithInputs);
  writer.set("gemma4.embedding_length_per_layer_input", 1u << 20);
  EXPECT_EQ(refusal(writer), "test.gguf: 6 layers with inputs of 1048576 elements each are beyond any known model");
  writer.set("gemma4.embedding_length_per_layer_input", 8u);
  EXPECT_THAT(refusal(writer), ::testing::HasSubstr("per_layer_token_embd.weight is [32, 96], expected [32, 48]"));
}

TEST(GgufGemma4, ExpertsStandBesideTheMlp) {
  const Loaded fused(small_gemma4({.experts = 6})), apart(small_gemma4({.experts = 6, .fused = false}));
  EXPECT_TRUE(fused.model.hp.experts.own_norms);
  EXPECT_EQ(fused.model.hp.experts.shared_ffn, 96);
  const Layer& layer = fused.model.layers[0];
  EXPECT_FALSE(layer.expert_up);
  EXPECT_EQ(layer.expert_gate.rows, 6 * 2 * 32);
  EXPECT_FLOAT_EQ(layer.router.scale, 1 / 8.0f);
  EXPECT_EQ(layer.down_scales.cols, 6);
  for (const int expert : {0, 5}) {
    const Weight gate = expert_gate_matrix(layer, expert, 32), up = expert_up_matrix(layer, expert, 32);
    EXPECT_EQ(gate.rows, 32);
    EXPECT_EQ(up.rows, 32);
    EXPECT_EQ(gate.data, layer.expert_gate.row(expert * 64));
    EXPECT_EQ(up.data, layer.expert_gate.row(expert * 64 + 32));
    EXPECT_EQ(expert_up_matrix(apart.model.layers[0], expert, 32).data,
              apart.model.layers[0].expert_up.row(expert * 32));
  }
  for (const std::string name : {"ffn_gate_inp.scale", "pre_ffw_norm_2.weight", "post_ffw_norm_1.weight",
                                 "post_ffw_norm_2.weight", "ffn_down.weight", "ffn_down_exps.weight"}) {
    GgufWriter writer = small_gemma4({.experts = 6});
    writer.erase_tensor("blk.1." + name);
    EXPECT_EQ(refusal(writer), "test.gguf: these tensors are missing: blk.1." + name);
  }
  EXPECT_EQ(refusal(small_gemma4({.experts = 6}).set("gemma4.feed_forward_length", std::vector<uint32_t>{96, 192})),
            "test.gguf: MLPs of different lengths beside experts are not supported");
}

TEST(GgufGemma4, TensorsThatAreNotReadAreRefused) {
  GgufWriter writer = small_gemma4();
  writer.add("blk.0.attn_q.bias", std::vector<float>(64), {64});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are not supported: blk.0.attn_q.bias");
  writer = small_gemma4();
  writer.erase_tensor("rope_freqs.weight");
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are missing: rope_freqs.weight");
}

TEST(GgufGemma4, AllLayersMayBeOfOneKind) {
  const Loaded whole(small_gemma4({.windows = {false, false}})), windows(small_gemma4({.windows = {true, true}}));
  EXPECT_THAT(whole.model.hp.windows, IsEmpty());
  EXPECT_FALSE(whole.model.hp.window_kv);
  EXPECT_EQ(whole.model.hp.kv(0), (KvShape{1, 32}));
  EXPECT_EQ(windows.model.hp.kv(1), (KvShape{2, 16}));
}

TEST(GgufGemma4, KnownShapesAreWhatIsTold) {
  const Hyperparameters dense = known_shape("gemma4-31b"), small = known_shape("gemma4-e4b");
  EXPECT_EQ(dense.layers_that_read_all().size(), 10u);
  EXPECT_EQ(dense.kv_bytes_per_token(), 50 * 4 * 16 * 256 + 10 * 4 * 4 * 512);
  EXPECT_EQ(small.kv_layer(41), 23);
  EXPECT_EQ(small.kv_layer(40), 22);
  EXPECT_EQ(small.kv_bytes_per_token(), 20 * 4 * 2 * 256 + 4 * 4 * 2 * 512);
  EXPECT_TRUE(known_shape("gemma4-26b-a4b").experts.own_norms);
}

}  // namespace
}  // namespace tidal::test
