// Files of hybrids: what is read of their recurrent layers, and what is refused.
#include "support/loading.h"

namespace tidal::test {
namespace {

constexpr const char* kHybrids[] = {"qwen35", "qwen35moe", "qwen3next"};

TEST(GgufHybrids, LayersAreRecurrentOrAttend) {
  for (const std::string architecture : kHybrids) {
    SCOPED_TRACE(architecture);
    const Bytes bytes = small_model(architecture, {.layers = 6, .interval = 3}).bytes();
    const Model model = load_bytes(bytes, bytes.size());
    const Hyperparameters& hp = model.hp;
    EXPECT_EQ(hp.recurrent, (std::vector<bool>{true, true, false, true, true, false}));
    EXPECT_EQ(hp.layers_that_read_all(), (std::vector<int>{2, 5}));
    EXPECT_EQ(
        hp.delta,
        (DeltaNet{
            .taps = 4, .head_dim = 16, .key_heads = 2, .value_heads = 4, .neighbours = architecture == "qwen3next"}));
    EXPECT_EQ(hp.kv_bytes_per_token(), 2 * 2 * 2 * 32);
    EXPECT_EQ(hp.rope.dims, 8);
    EXPECT_EQ(static_cast<bool>(hp.experts), architecture != "qwen35");
    for (int l = 0; l < hp.layers; ++l) {
      const Layer& layer = model.layers[static_cast<size_t>(l)];
      EXPECT_EQ(static_cast<bool>(layer.delta), hp.recurs(l));
      EXPECT_EQ(static_cast<bool>(layer.wq), !hp.recurs(l));
      EXPECT_EQ(static_cast<bool>(layer.attn_gate), !hp.recurs(l));
      EXPECT_TRUE(layer.attn_norm && layer.ffn_norm);
      if (!hp.recurs(l)) continue;
      EXPECT_EQ(layer.delta.mixed.rows, 128);
      EXPECT_EQ(layer.delta.gate.rows, 64);
      EXPECT_EQ(layer.delta.beta.rows, 4);
      EXPECT_EQ(layer.delta.alpha.rows, 4);
      EXPECT_EQ(layer.delta.out.cols, 64);
    }
  }
}

TEST(GgufHybrids, AllWeightsOfAFileAreReadByAStep) {
  for (const std::string architecture : kHybrids) {
    SCOPED_TRACE(architecture);
    GgufWriter writer = small_model(architecture, {.experts = architecture == "qwen35" ? 0u : 2u});
    // Everything, and of the tied embedding a row more.
    const Bytes bytes = writer.bytes();
    const GgufFile file = GgufFile::parse(bytes.data(), bytes.size(), "test.gguf");
    int64_t all = 64 * 4;
    for (const auto& [name, weight] : file.tensors()) all += static_cast<int64_t>(weight.bytes());
    EXPECT_EQ(load_bytes(bytes, bytes.size()).decode_weight_bytes(), all);
  }
}

TEST(GgufHybrids, EveryFourthLayerAttendsUnlessTheFileSaysOtherwise) {
  GgufWriter writer = small_model("qwen35", {.layers = 4, .interval = 4});
  writer.erase("qwen35.full_attention_interval");
  EXPECT_EQ(hyperparameters(writer).recurrent, (std::vector<bool>{true, true, true, false}));
  // What is said of each layer counts for more.
  writer = small_model("qwen35", {.layers = 4, .interval = 4});
  writer.set("qwen35.full_attention_interval", 2u);
  writer.set("qwen35.attention.recurrent_layers", std::vector<uint32_t>{1, 1, 1, 0});
  EXPECT_EQ(refusal(writer), "");
  writer.set("qwen35.attention.recurrent_layers", std::vector<uint32_t>{1, 1, 0});
  EXPECT_EQ(refusal(writer),
            "test.gguf: key 'qwen35.attention.recurrent_layers' has 3 values, expected one for each of 4 layers");
  writer.set("qwen35.attention.recurrent_layers", 1u);
  EXPECT_EQ(refusal(writer), "test.gguf: all layers are recurrent, expected one that attends");
}

TEST(GgufHybrids, SizesThatAreNone) {
  const auto with = [&](const char* key, uint32_t value) {
    GgufWriter writer = small_model("qwen35");
    writer.set(std::string("qwen35.") + key, value);
    return refusal(writer);
  };
  for (const char* key :
       {"ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size"}) {
    EXPECT_EQ(with(key, 0), fmt::format("test.gguf: key 'qwen35.{}' is 0, expected 1 to 2^24", key));
  }
  EXPECT_EQ(with("ssm.conv_kernel", 1), "test.gguf: the convolution looks at 1 rows, expected 2 to 64");
  EXPECT_EQ(with("ssm.conv_kernel", 65), "test.gguf: the convolution looks at 65 rows, expected 2 to 64");
  EXPECT_EQ(with("ssm.group_count", 3), "test.gguf: 4 value heads cannot share 3 key heads");
  EXPECT_EQ(with("ssm.group_count", 8), "test.gguf: 4 value heads cannot share 8 key heads");
  EXPECT_EQ(with("ssm.inner_size", 65),
            "test.gguf: key 'qwen35.ssm.inner_size' is 65, expected 64 for 4 value heads of 16 elements");
  EXPECT_EQ(with("ssm.time_step_rank", 1u << 24),
            "test.gguf: 2 key heads and 16777216 value heads of 16 elements are beyond any known model");
  EXPECT_EQ(with("ssm.state_size", 1u << 24),
            "test.gguf: 2 key heads and 4 value heads of 16777216 elements are beyond any known model");
  EXPECT_EQ(with("full_attention_interval", 0), "test.gguf: every 0th layer attends, expected at least 1");
  EXPECT_EQ(with("full_attention_interval", 3), "test.gguf: all layers are recurrent, expected one that attends");
  GgufWriter writer = small_model("qwen35");
  writer.erase("qwen35.ssm.state_size").erase("qwen35.ssm.group_count");
  EXPECT_EQ(refusal(writer), "test.gguf: these keys are missing: qwen35.ssm.state_size, qwen35.ssm.group_count");
}

TEST(GgufHybrids, TensorsThatAreWrong) {
  GgufWriter writer = small_model("qwen35");
  writer.set("qwen35.ssm.conv_kernel", 3u);
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are wrong: blk.0.ssm_conv1d.weight is [128, 4], expected [128, 3]");
  writer = small_model("qwen35");
  writer.add("blk.0.ssm_conv1d.weight", GGML_TYPE_F16, {4, 128});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are wrong: blk.0.ssm_conv1d.weight is f16, expected f32");
  writer = small_model("qwen35");
  writer.add("blk.1.attn_q.weight", GGML_TYPE_F32, {64, 64});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are wrong: blk.1.attn_q.weight is [64, 64], expected [128, 64]");
  writer = small_model("qwen3next");
  writer.add("blk.0.ssm_ba.weight", GGML_TYPE_F32, {64, 4});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are wrong: blk.0.ssm_ba.weight is [4, 64], expected [8, 64]");
  writer = small_model("qwen35");
  for (const char* name : {"ssm_a", "ssm_dt.bias", "ssm_beta.weight"})
    writer.erase_tensor(std::string("blk.0.") + name);
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are missing: blk.0.ssm_beta.weight, blk.0.ssm_dt.bias, blk.0.ssm_a");
  // A layer that attends has no use for it.
  writer = small_model("qwen35");
  writer.add("blk.1.ssm_a", std::vector<float>(4, -1.0f), {4});
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are not supported: blk.1.ssm_a");
}

TEST(GgufHybrids, LayersForFurtherTokensAreLeftOut) {
  GgufWriter writer = small_model("qwen35");
  writer.set("qwen35.block_count", 3u).set("qwen35.nextn_predict_layers", 1u);
  writer.add("blk.2.nextn.eh_proj.weight", GGML_TYPE_F32, {128, 64});
  EXPECT_EQ(refusal(writer), "");
  EXPECT_EQ(hyperparameters(writer).layers, 2);
  writer.set("qwen35.nextn_predict_layers", 3u);
  EXPECT_EQ(refusal(writer), "test.gguf: 3 NextN layers of 3, expected fewer");
  writer = small_model("llama");
  writer.set("llama.nextn_predict_layers", 1u);
  EXPECT_EQ(refusal(writer), "test.gguf: NextN layers are not supported");
}

TEST(GgufHybrids, AxesOfPicturesTakeTurns) {
  const auto with = [&](const std::vector<uint32_t>& sections) {
    GgufWriter writer = small_model("qwen35");
    writer.set("qwen35.rope.dimension_sections", sections);
    return refusal(writer);
  };
  const std::string key = "test.gguf: key 'qwen35.rope.dimension_sections' ";
  EXPECT_EQ(with({2, 1, 1, 0}), "");
  EXPECT_EQ(with({2, 1, 1}), key + "is missing or not 4 numbers");
  EXPECT_EQ(with({0, 0, 0, 0}), key + "gives 0 pairs to the axes, expected 1 to 8");
  EXPECT_EQ(with({3, 3, 2, 1}), key + "gives 9 pairs to the axes, expected 1 to 8");
  EXPECT_EQ(with({100, 1, 1, 0}), key + "holds 100, expected 0 to 8");
  EXPECT_EQ(with({1, 1, 1, 1}), key + "gives pair 3 to the last axis, which is not supported");
  GgufWriter writer = small_model("qwen35");
  writer.erase("qwen35.rope.dimension_sections");
  EXPECT_EQ(refusal(writer), key + "is missing or not 4 numbers");
}

}  // namespace
}  // namespace tidal::test
