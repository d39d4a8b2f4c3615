// GGUF files of sound form with keys and tensors that do not make a supported model.
#include <cmath>
#include <limits>

#include "model/family.h"
#include "support/loading.h"

namespace tidal::test {
namespace {

using ::testing::HasSubstr;

TEST(GgufModel, EveryArchitectureLoads) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(architecture);
    const GgufWriter writer = small_model(architecture);
    const Bytes bytes = writer.bytes();
    const Model model = load_bytes(bytes, bytes.size());
    const Hyperparameters& hp = model.hp;
    EXPECT_EQ(hp.architecture, architecture);
    EXPECT_EQ(hp.name, "small");
    EXPECT_EQ(hp.layers, 2);
    EXPECT_EQ(hp.width, 64);
    EXPECT_EQ(hp.heads, 4);
    EXPECT_EQ(hp.kv_heads, 2);
    EXPECT_EQ(hp.group(), 2);
    EXPECT_EQ(hp.head_dim, 16);
    EXPECT_EQ(hp.ffn, 96);
    EXPECT_EQ(hp.vocab, 32);
    EXPECT_EQ(hp.context, 128);
    EXPECT_EQ(hp.rms_epsilon, 1e-5f);
    EXPECT_EQ(hp.kv_bytes_per_token(), 2 * 2 * 32 * 2);
    EXPECT_EQ(hp.rope.pairing, std::string(architecture) == "llama" ? Rope::Pairing::Adjacent : Rope::Pairing::Halves);
    ASSERT_EQ(model.layers.size(), 2u);
    for (const Layer& layer : model.layers) {
      EXPECT_EQ(static_cast<bool>(layer.bq), hp.architecture == "qwen2");
      EXPECT_EQ(static_cast<bool>(layer.bk), hp.architecture == "qwen2");
      EXPECT_EQ(static_cast<bool>(layer.bv), hp.architecture == "qwen2");
      EXPECT_EQ(static_cast<bool>(layer.q_norm), hp.architecture == "qwen3");
      EXPECT_EQ(static_cast<bool>(layer.k_norm), hp.architecture == "qwen3");
      EXPECT_FALSE(layer.bo);
    }
    EXPECT_EQ(model.output.data, model.embedding.data);
    EXPECT_EQ(model.quantisation, "F32");
  }
}

TEST(GgufModel, AnOwnOutputMatrixAndBiases) {
  GgufWriter writer = small_model("llama");
  writer.add("output.weight", GGML_TYPE_Q8_0, {64, 32});
  writer.add("blk.0.attn_q.bias", GGML_TYPE_F32, {64});
  writer.add("blk.0.ffn_down.bias", GGML_TYPE_F32, {64});
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  EXPECT_NE(model.output.data, model.embedding.data);
  EXPECT_EQ(model.output.type, GGML_TYPE_Q8_0);
  EXPECT_TRUE(model.layers[0].bq);
  EXPECT_TRUE(model.layers[0].b_down);
  EXPECT_FALSE(model.layers[1].bq);
}

TEST(GgufModel, DefaultsOfAbsentKeys) {
  GgufWriter writer = small_model("llama");
  writer.erase("llama.rope.freq_base").erase("general.name").erase("general.file_type");
  const Hyperparameters hp = hyperparameters(writer);
  EXPECT_EQ(hp.name, "");
  EXPECT_EQ(hp.rope.dims, 16);
  EXPECT_DOUBLE_EQ(hp.rope.frequencies[1], std::pow(10000.0, -2.0 / 16));

  // Without a number of KV heads every query head has its own.
  writer.erase("llama.attention.head_count_kv");
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are wrong: blk.0.attn_k.weight is [32, 64], expected [64, 64], "
            "blk.0.attn_v.weight is [32, 64], expected [64, 64], blk.1.attn_k.weight is [32, 64], expected [64, 64], "
            "blk.1.attn_v.weight is [32, 64], expected [64, 64]");
}

TEST(GgufModel, AHeadSizeOfItsOwn) {  // as Qwen3 has: heads * head size is not the width
  GgufWriter writer = small_model("qwen3");
  writer.set("qwen3.attention.key_length", 32u).set("qwen3.attention.value_length", 32u);
  for (const char* block : {"blk.0.", "blk.1."}) {
    const std::string name = block;
    writer.add(name + "attn_q.weight", GGML_TYPE_F32, {64, 128});
    writer.add(name + "attn_k.weight", GGML_TYPE_F32, {64, 64});
    writer.add(name + "attn_v.weight", GGML_TYPE_F32, {64, 64});
    writer.add(name + "attn_output.weight", GGML_TYPE_F32, {128, 64});
    writer.add(name + "attn_q_norm.weight", GGML_TYPE_F32, {32});
    writer.add(name + "attn_k_norm.weight", GGML_TYPE_F32, {32});
  }
  const Hyperparameters hp = hyperparameters(writer);
  EXPECT_EQ(hp.head_dim, 32);
  EXPECT_EQ(hp.q_width(), 128);
  EXPECT_EQ(hp.rope.dims, 32);
}

TEST(GgufModel, SizesGivenPerLayer) {
  GgufWriter writer = small_model("llama");
  writer.set("llama.attention.head_count_kv", std::vector<uint32_t>{2, 2});
  EXPECT_EQ(hyperparameters(writer).kv_heads, 2);
  writer.set("llama.attention.head_count_kv", std::vector<uint32_t>{2, 4});
  EXPECT_EQ(refusal(writer),
            "test.gguf: key 'llama.attention.head_count_kv' differs between layers, which is not supported");
  for (const char* key : {"attention.head_count_kv", "attention.head_count", "feed_forward_length"}) {
    for (const size_t count : {0, 1, 3}) {
      GgufWriter wrong = small_model("llama");
      wrong.set(std::string("llama.") + key, std::vector<uint32_t>(count, 4));
      EXPECT_EQ(refusal(wrong),
                fmt::format("test.gguf: key 'llama.{}' has {} values, expected one for each of 2 layers", key, count));
    }
  }
}

TEST(GgufModel, UnsupportedArchitecturesAreRefusedByName) {
  for (const char* architecture : {"gemma", "llama4", "qwen2vl", "Llama", ""}) {
    GgufWriter writer = small_model("llama");
    writer.set("general.architecture", architecture);
    EXPECT_EQ(refusal(writer),
              fmt::format("test.gguf: architecture '{}' is not supported, expected {}", architecture, family_names()));
  }
  EXPECT_EQ(family_names(),
            "llama, mistral3, qwen2, qwen3, qwen2moe, qwen3moe, olmoe, olmo2, gemma2, gemma3, gemma4, smollm3, "
            "seed_oss, phi3, glm4, "
            "gpt-oss, granite, granitemoe, qwen35, qwen35moe or qwen3next");
  GgufWriter writer = small_model("llama");
  writer.set("general.architecture", 3u);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'general.architecture' has type u32, expected a string");
  writer.erase("general.architecture");
  EXPECT_EQ(refusal(writer), "test.gguf: key 'general.architecture' is missing");
  EXPECT_EQ(refusal(GgufWriter()), "test.gguf: key 'general.architecture' is missing");
}

TEST(GgufModel, AllMissingKeysInOneMessage) {
  GgufWriter writer;
  writer.set("general.architecture", "qwen2");
  EXPECT_EQ(refusal(writer),
            "test.gguf: these keys are missing: qwen2.block_count, qwen2.embedding_length, qwen2.feed_forward_length, "
            "qwen2.attention.head_count, qwen2.context_length, qwen2.attention.layer_norm_rms_epsilon, "
            "tokenizer.ggml.tokens");
  writer = small_model("llama");
  writer.erase("llama.context_length").erase("llama.attention.layer_norm_rms_epsilon");
  EXPECT_EQ(refusal(writer),
            "test.gguf: these keys are missing: llama.context_length, llama.attention.layer_norm_rms_epsilon");
}

TEST(GgufModel, AllMissingAndWrongTensorsInOneMessage) {
  GgufWriter writer = small_model("qwen2");
  writer.erase_tensor("output_norm.weight");
  writer.erase_tensor("blk.0.attn_k.weight");
  writer.erase_tensor("blk.1.ffn_gate.weight");
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are missing: output_norm.weight, blk.0.attn_k.weight, blk.1.ffn_gate.weight");
  writer.add("blk.0.attn_norm.weight", GGML_TYPE_F16, {64});
  writer.add("blk.1.ffn_up.weight", GGML_TYPE_F32, {96, 64});
  writer.add("blk.1.ffn_down.weight", GGML_TYPE_I32, {96, 64});
  EXPECT_EQ(
      refusal(writer),
      "test.gguf: these tensors are missing: output_norm.weight, blk.0.attn_k.weight, blk.1.ffn_gate.weight; these "
      "tensors are wrong: blk.0.attn_norm.weight is f16, expected f32, blk.1.ffn_up.weight is [64, 96], expected "
      "[96, 64], blk.1.ffn_down.weight is i32, expected floats or a quantisation");
}

TEST(GgufModel, LayersMissingAltogether) {
  GgufWriter writer = small_model("llama");
  writer.set("llama.block_count", 5u);
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are missing: blk.2.*, blk.3.*, blk.4.*");
  writer.set("llama.block_count", 4096u);
  EXPECT_THAT(refusal(writer), HasSubstr("blk.2.*, blk.3.*"));
  EXPECT_THAT(refusal(writer), HasSubstr(" and 4034 more"));
}

struct WrongSize {
  const char* key;
  uint32_t value;
  const char* message;
};

TEST(GgufModel, SizesOutOfRange) {
  const WrongSize cases[] = {
      {"block_count", 0, "key 'llama.block_count' is 0, expected 1 to 2^24"},
      {"block_count", ~0u, "key 'llama.block_count' is 4294967295, expected 1 to 2^24"},
      {"block_count", 1 << 25, "key 'llama.block_count' is 33554432, expected 1 to 2^24"},
      {"block_count", 1 << 20, "1048576 layers are beyond any known model"},
      {"embedding_length", 0, "key 'llama.embedding_length' is 0, expected 1 to 2^24"},
      {"embedding_length", 1 << 22, "2 layers, width 4194304 and 4 heads are beyond any known model"},
      {"embedding_length", 66, "the width 66 cannot be divided by 4 heads"},
      {"feed_forward_length", 0, "key 'llama.feed_forward_length' is 0, expected 1 to 2^24"},
      {"context_length", 0, "key 'llama.context_length' is 0, expected 1 to 2^24"},
      {"attention.head_count", 0, "key 'llama.attention.head_count' is 0, expected 1 to 2^24"},
      {"attention.head_count", ~0u, "key 'llama.attention.head_count' is 4294967295, expected 1 to 2^24"},
      {"attention.head_count_kv", 0, "key 'llama.attention.head_count_kv' is 0, expected 1 to 2^24"},
      {"attention.head_count_kv", 3, "4 attention heads cannot share 3 KV heads evenly"},
      {"attention.head_count_kv", 8, "4 attention heads cannot share 8 KV heads evenly"},
      {"attention.head_count", 8, "the head size is 8, expected a multiple of 16 up to 512"},
      {"attention.key_length", 24, "keys and values of different head sizes are not supported"},
      {"rope.dimension_count", 0, "key 'llama.rope.dimension_count' is 0, expected 1 to 2^24"},
      {"rope.dimension_count", 7, "rope rotates 7 elements, expected an even number up to the head size 16"},
      {"rope.dimension_count", 18, "rope rotates 18 elements, expected an even number up to the head size 16"},
  };
  for (const WrongSize& wrong : cases) {
    GgufWriter writer = small_model("llama");
    if (std::string(wrong.key) == "attention.key_length") writer.set("llama.attention.value_length", 16u);
    writer.set(std::string("llama.") + wrong.key, wrong.value);
    EXPECT_EQ(refusal(writer), std::string("test.gguf: ") + wrong.message) << wrong.key << " = " << wrong.value;
  }
}

TEST(GgufModel, HeadSizesTheKernelsDoNotKnow) {
  for (const uint32_t size : {1u, 8u, 24u, 100u, 264u, 528u}) {
    GgufWriter writer = small_model("llama");
    writer.set("llama.attention.key_length", size).set("llama.attention.value_length", size);
    EXPECT_EQ(refusal(writer),
              fmt::format("test.gguf: the head size is {}, expected a multiple of 16 up to 512", size));
  }
}

TEST(GgufModel, HeadsAndSizesThatWouldOverflow) {
  GgufWriter writer = small_model("llama");
  writer.set("llama.attention.head_count", 1u << 24).set("llama.attention.head_count_kv", 1u << 24);
  writer.set("llama.attention.key_length", 256u);
  EXPECT_EQ(refusal(writer), "test.gguf: 2 layers, width 64 and 16777216 heads are beyond any known model");
}

TEST(GgufModel, KeysOfAWrongType) {
  const std::string start = "test.gguf: key 'llama.";
  GgufWriter writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.block_count", "two")), start + "block_count' has type str, expected u32");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.block_count", 2)), start + "block_count' has type i32, expected u32");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.block_count", true)), start + "block_count' has type bool, expected u32");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.rope.freq_base", "big")), start + "rope.freq_base' has type str, expected f32");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.rope.scaling.type", 1u)),
            start + "rope.scaling.type' has type u32, expected a string");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("llama.attention.head_count_kv", std::vector<std::string>{"2", "2"})),
            start + "attention.head_count_kv' is an array of str, expected one of u32, i32 or bool");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("tokenizer.ggml.tokens", "all")),
            "test.gguf: key 'tokenizer.ggml.tokens' has type str, expected an array");
  writer = small_model("llama");
  EXPECT_EQ(refusal(writer.set("tokenizer.ggml.tokens", std::vector<std::string>())),
            "test.gguf: the vocabulary has 0 tokens");
  for (const char* key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    writer = small_model("llama");
    EXPECT_EQ(refusal(writer.set(key, std::vector<uint32_t>(32))), "");
    EXPECT_EQ(refusal(writer.set(key, std::vector<uint32_t>(31))),
              fmt::format("test.gguf: key '{}' has 31 values, expected one for each of 32 tokens", key));
  }
}

TEST(GgufModel, NumbersThatAreNoNumbers) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const char* key : {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scale_linear",
                          "rope.scaling.factor", "rope.scaling.attn_factor"}) {
    for (const float value : {kNan, kInfinity, -kInfinity}) {
      GgufWriter writer = small_model("llama");
      writer.set("llama.rope.scaling.type", "yarn").set(std::string("llama.") + key, value);
      EXPECT_EQ(refusal(writer), fmt::format("test.gguf: key 'llama.{}' is not a finite number", key)) << value;
    }
  }
  for (const char* key : {"rope.scale_linear", "rope.scaling.factor", "rope.scaling.attn_factor"}) {
    for (const float value : {0.0f, -0.0f, -2.0f}) {
      GgufWriter writer = small_model("llama");
      writer.set("llama.rope.scaling.type", "yarn").set(std::string("llama.") + key, value);
      EXPECT_EQ(refusal(writer), fmt::format("test.gguf: key 'llama.{}' is {}, expected a number above 0", key,
                                             static_cast<double>(value)));
    }
  }
  for (const float value : {0.0f, -1e-5f, 1.5f}) {
    GgufWriter writer = small_model("llama");
    writer.set("llama.attention.layer_norm_rms_epsilon", value);
    EXPECT_EQ(refusal(writer),
              fmt::format("test.gguf: the RMS epsilon is {}, expected a number above 0 and at most 1", value));
  }
  for (const float value : {0.0f, -10000.0f, 1.0f}) {
    GgufWriter writer = small_model("llama");
    writer.set("llama.rope.freq_base", value);
    EXPECT_EQ(refusal(writer),
              fmt::format("test.gguf: the rope base is {}, expected a number above 1", static_cast<double>(value)));
  }
  GgufWriter writer = small_model("llama");
  writer.set("llama.rope.scaling.factor", 1e-44f);
  EXPECT_EQ(refusal(writer),
            "test.gguf: the rope base, scaling and factors give frequencies that are not finite numbers");
}

TEST(GgufModel, QueriesOfMinistralGrowWithTheirPosition) {
  const Bytes bytes = small_model("mistral3").bytes();
  const Hyperparameters hp = load_bytes(bytes, bytes.size()).hp;
  EXPECT_EQ(hp.temperature_length, 16);
  EXPECT_EQ(hp.temperature(0), 1.0f);
  EXPECT_EQ(hp.temperature(15), 1.0f);
  EXPECT_FLOAT_EQ(hp.temperature(16), 1 + 0.1f * std::log(2.0f));
  EXPECT_FLOAT_EQ(hp.temperature(47), 1 + 0.1f * std::log(3.0f));
  EXPECT_EQ(Hyperparameters().temperature(1 << 20), 1.0f);
  GgufWriter writer = small_model("mistral3");
  writer.set("mistral3.rope.scaling.original_context_length", 0u);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'mistral3.rope.scaling.original_context_length' is 0, expected 1 to 2^24");
  writer = small_model("mistral3");
  writer.set("mistral3.attention.temperature_scale", std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(refusal(writer), "test.gguf: key 'mistral3.attention.temperature_scale' is not a finite number");
  writer = small_model("mistral3");
  writer.set("mistral3.rope.scaling.yarn_beta_slow", -1.0f);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'mistral3.rope.scaling.yarn_beta_slow' is -1, expected a number above 0");
}

TEST(GgufModel, FactorsOfGraniteAreInTheWeights) {
  GgufWriter writer = small_model("granite");
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  EXPECT_EQ(model.hp.embedding_scale, 12.0f);
  EXPECT_EQ(model.embedding.scale, 1.0f);
  EXPECT_FLOAT_EQ(model.output.scale, 1 / 3.0f);
  for (const Layer& layer : model.layers) {
    EXPECT_FLOAT_EQ(layer.wq.scale, 0.4f * 4);  // in place of 1 / sqrt(16)
    EXPECT_EQ(layer.wk.scale, 1.0f);
    EXPECT_FLOAT_EQ(layer.wo.scale, 0.6f);
    EXPECT_FLOAT_EQ(layer.down.scale, 0.6f);
    EXPECT_EQ(layer.up.scale, 1.0f);
  }
  for (const char* name : {"attn_q.bias", "attn_output.bias", "ffn_down.bias"}) {
    GgufWriter biased = small_model("granite");
    biased.add(std::string("blk.1.") + name, GGML_TYPE_F32, {64});
    EXPECT_EQ(refusal(biased), fmt::format("test.gguf: these tensors are not supported: blk.1.{}", name));
  }
  writer.set("granite.logit_scale", 0.0f);
  EXPECT_EQ(refusal(writer), "test.gguf: key 'granite.logit_scale' is 0");
  writer.erase("granite.logit_scale");
  EXPECT_EQ(refusal(writer), "test.gguf: these keys are missing: granite.logit_scale");
}

TEST(GgufModel, LayersThatDoNotRotate) {
  const Bytes bytes = small_model("smollm3", {.layers = 9}).bytes();
  const Model model = load_bytes(bytes, bytes.size());
  for (int l = 0; l < 9; ++l) EXPECT_EQ(model.layers[l].rotates, l != 3 && l != 7) << l;
  GgufWriter granite = small_model("granite");
  EXPECT_TRUE(hyperparameters(granite).rotates(0));
  granite.set("granite.rope.scaling.finetuned", false);
  EXPECT_FALSE(hyperparameters(granite).rotates(0));
  // libllama gives this family's key no meaning.
  GgufWriter phi = small_model("phi3");
  phi.set("phi3.attention.sliding_window", 64u);
  EXPECT_EQ(hyperparameters(phi).windows, std::vector<int>());
  phi.set("phi3.nextn_predict_layers", 1u);
  EXPECT_EQ(refusal(phi), "test.gguf: NextN layers are not supported");
}

TEST(GgufModel, PairsOfPicturesAreHalves) {
  GgufWriter glm = small_model("glm4");
  EXPECT_EQ(hyperparameters(glm).rope.pairing, Rope::Pairing::Adjacent);
  const auto with = [&](const std::vector<uint32_t>& sections) {
    glm.set("glm4.rope.dimension_sections", sections);
    return refusal(glm);
  };
  EXPECT_EQ(with({0, 0, 0, 0}), "");
  EXPECT_EQ(hyperparameters(glm).rope.pairing, Rope::Pairing::Adjacent);
  EXPECT_EQ(with({3, 3, 2, 0}), "");
  EXPECT_EQ(hyperparameters(glm).rope.pairing, Rope::Pairing::Halves);
  const std::string others = "to the first three axes, others are not supported";
  EXPECT_EQ(with({3, 3, 1, 0}), "test.gguf: key 'glm4.rope.dimension_sections' gives 7 pairs of 8 " + others);
  EXPECT_EQ(with({3, 3, 2, 1}), "test.gguf: key 'glm4.rope.dimension_sections' gives 8 pairs of 8 " + others);
}

TEST(GgufModel, FactorsOfLongContextsGoByTheTrainedOne) {
  GgufWriter writer = small_model("phi3");
  const std::vector<float> longer(8, 4.0f), shorter(8, 2.0f);
  writer.add("rope_factors_long.weight", longer, {8});
  writer.add("rope_factors_short.weight", shorter, {8});
  const auto frequency = [&](uint32_t original_context) {
    writer.set("phi3.rope.scaling.original_context_length", original_context);
    return hyperparameters(writer).rope.frequencies[0];
  };
  EXPECT_DOUBLE_EQ(frequency(127), 1 / 4.0);
  EXPECT_DOUBLE_EQ(frequency(128), 1 / 2.0);
  writer.add("rope_factors_short.weight", std::vector<float>(7, 2.0f), {7});
  EXPECT_EQ(refusal(writer), "test.gguf: tensor 'rope_factors_short.weight' is f32 [1, 7], expected f32 [8]");
}

}  // namespace
}  // namespace tidal::test
