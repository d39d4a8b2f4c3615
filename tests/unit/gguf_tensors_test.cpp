// Every tensor of a file counts, or the file is refused: scales, fused matrices, biases, and those nobody asked for.
#include <cmath>
#include <limits>

#include "support/loading.h"

namespace tidal::test {
namespace {

/// The bytes of `names` one behind the other, as one tensor of `rows` rows in the place of the first.
void fuse(GgufWriter& writer, const std::vector<std::string>& names, const std::string& name,
          const std::vector<uint64_t>& sizes) {
  Bytes data;
  for (const std::string& part : names) {
    const Bytes& from = writer.tensor(part).data;
    data.insert(data.end(), from.begin(), from.end());
    writer.erase_tensor(part);
  }
  writer.add(name, GGML_TYPE_F32, sizes).data = data;
}

std::vector<float> floats(const Weight& weight) {
  return {weight.floats(), weight.floats() + weight.rows * weight.cols};
}

TEST(GgufTensors, FusedMatricesAreThoseOfTheirParts) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(architecture);
    GgufWriter writer = small_model(architecture);
    for (const char* bias : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"}) {
      const uint64_t size = std::string(bias).starts_with("ffn") ? 96 : std::string(bias) == "attn_q" ? 64 : 32;
      std::vector<float> values(size);
      for (size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) + static_cast<float>(bias[5]);
      for (const char* layer : {"blk.0.", "blk.1."}) writer.add(std::string(layer) + bias + ".bias", values, {size});
    }
    const Bytes apart_bytes = writer.bytes();
    const Model apart = load_bytes(apart_bytes, apart_bytes.size());
    for (const std::string layer : {"blk.0.", "blk.1."}) {
      fuse(writer, {layer + "attn_q.weight", layer + "attn_k.weight", layer + "attn_v.weight"},
           layer + "attn_qkv.weight", {64, 128});
      if (layer == "blk.0.") {  // in the other layer the biases stay by themselves
        fuse(writer, {layer + "attn_q.bias", layer + "attn_k.bias", layer + "attn_v.bias"}, layer + "attn_qkv.bias",
             {128});
      }
      fuse(writer, {layer + "ffn_gate.weight", layer + "ffn_up.weight"}, layer + "ffn_up.weight", {64, 192});
      fuse(writer, {layer + "ffn_gate.bias", layer + "ffn_up.bias"}, layer + "ffn_up.bias", {192});
    }
    const Bytes bytes = writer.bytes();
    const Model fused = load_bytes(bytes, bytes.size());
    for (size_t l = 0; l < 2; ++l) {
      const Layer &a = apart.layers[l], &b = fused.layers[l];
      const std::pair<const Weight*, const Weight*> pairs[] = {
          {&a.wq, &b.wq}, {&a.wk, &b.wk},     {&a.wv, &b.wv}, {&a.bq, &b.bq},         {&a.bk, &b.bk},
          {&a.bv, &b.bv}, {&a.gate, &b.gate}, {&a.up, &b.up}, {&a.b_gate, &b.b_gate}, {&a.b_up, &b.b_up}};
      for (const auto& [one, other] : pairs) {
        ASSERT_TRUE(*one && *other);
        EXPECT_EQ(one->rows, other->rows);
        EXPECT_EQ(one->cols, other->cols);
        EXPECT_EQ(floats(*one), floats(*other)) << "tensor " << (&one - &pairs[0].first) << " of layer " << l;
      }
    }
  }
}

TEST(GgufTensors, FusedMatricesOfAnotherSize) {
  GgufWriter writer = small_model("llama");
  writer.add("blk.0.attn_qkv.weight", GGML_TYPE_F32, {64, 127});
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}) {
    writer.erase_tensor(name);
  }
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are wrong: blk.0.attn_qkv.weight is [127, 64], expected [128, 64]");
  writer = small_model("llama");
  writer.add("blk.0.attn_qkv.weight", GGML_TYPE_F32, {64, 128});
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are not supported: blk.0.attn_k.weight, blk.0.attn_q.weight, "
            "blk.0.attn_v.weight");
  writer = small_model("llama");
  writer.erase_tensor("blk.0.ffn_gate.weight");
  writer.add("blk.0.ffn_up.weight", GGML_TYPE_F32, {64, 193});
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are missing: blk.0.ffn_gate.weight; these tensors are wrong: blk.0.ffn_up.weight "
            "is [193, 64], expected [96, 64]");
}

TEST(GgufTensors, BiasesAreTakenWhereTheyAre) {
  GgufWriter writer = small_model("qwen2");
  writer.erase_tensor("blk.0.attn_q.bias");
  writer.erase_tensor("blk.1.attn_v.bias");
  writer.add("blk.1.attn_output.bias", GGML_TYPE_F32, {64});
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  EXPECT_FALSE(model.layers[0].bq);
  EXPECT_TRUE(model.layers[0].bk);
  EXPECT_TRUE(model.layers[1].bq);
  EXPECT_FALSE(model.layers[1].bv);
  EXPECT_FALSE(model.layers[0].bo);
  EXPECT_TRUE(model.layers[1].bo);
}

TEST(GgufTensors, SecondScalesBelongToTheirMatrix) {
  GgufWriter writer = small_model("llama");
  const char* names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
  for (int i = 0; i < 7; ++i) {
    writer.add(fmt::format("blk.1.{}.scale", names[i]), {1.0f + static_cast<float>(i) / 4}, {1});
    writer.add(fmt::format("blk.1.{}.input_scale", names[i]), {9.0f}, {1});  // of activations in 4 bits: nobody's
  }
  writer.add("output.weight", GGML_TYPE_F32, {64, 32});
  writer.add("output.scale", {-0.5f}, {1});
  const Bytes bytes = writer.bytes();
  const Model model = load_bytes(bytes, bytes.size());
  const auto scales = [](const Layer& layer) {
    return std::vector<float>{layer.wq.scale,   layer.wk.scale, layer.wv.scale,  layer.wo.scale,
                              layer.gate.scale, layer.up.scale, layer.down.scale};
  };
  EXPECT_EQ(scales(model.layers[0]), std::vector<float>(7, 1.0f));
  EXPECT_EQ(scales(model.layers[1]), (std::vector<float>{1, 1.25f, 1.5f, 1.75f, 2, 2.25f, 2.5f}));
  EXPECT_EQ(model.output.scale, -0.5f);
  EXPECT_EQ(model.embedding.scale, 1.0f);
}

TEST(GgufTensors, TheScaleOfAFusedMatrixIsAllItsParts) {
  GgufWriter writer = small_model("llama");
  fuse(writer, {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}, "blk.0.attn_qkv.weight",
       {64, 128});
  writer.add("blk.0.attn_qkv.scale", {3.0f}, {1});
  const Bytes bytes = writer.bytes();
  const Layer layer = load_bytes(bytes, bytes.size()).layers[0];
  EXPECT_EQ(layer.wq.scale, 3.0f);
  EXPECT_EQ(layer.wk.scale, 3.0f);
  EXPECT_EQ(layer.wv.scale, 3.0f);
}

TEST(GgufTensors, ScalesThatAreNone) {
  const auto with = [](const std::vector<float>& values) {
    GgufWriter writer = small_model("llama");
    writer.add("blk.0.attn_q.scale", values, {values.size()});
    return refusal(writer);
  };
  const std::string start = "test.gguf: these tensors are wrong: blk.0.attn_q.scale is ";
  EXPECT_EQ(with({1, 2}), start + "[1, 2], expected [1, 1]");
  EXPECT_EQ(with({std::numeric_limits<float>::quiet_NaN()}), start + "nan, expected a finite number");
  EXPECT_EQ(with({std::numeric_limits<float>::infinity()}), start + "inf, expected a finite number");
  GgufWriter writer = small_model("llama");
  writer.add("output.scale", {2.0f}, {1});  // without a matrix of its own: the embedding has no scale
  EXPECT_EQ(refusal(writer), "test.gguf: these tensors are not supported: output.scale");
}

TEST(GgufTensors, WhatNobodyAskedForIsRefused) {
  GgufWriter writer = small_model("llama");
  writer.add("blk.0.attn_q_norm.weight", GGML_TYPE_F32, {16});
  writer.add("blk.1.ffn_gate_inp.weight", GGML_TYPE_F32, {64, 8});
  writer.add("blk.2.attn_norm.weight", GGML_TYPE_F32, {64});  // a layer beyond the last
  writer.add("token_embd.scale", {2.0f}, {1});
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are not supported: blk.0.attn_q_norm.weight, blk.1.ffn_gate_inp.weight, "
            "blk.2.attn_norm.weight, token_embd.scale");
  writer.erase_tensor("output_norm.weight");
  EXPECT_EQ(refusal(writer),
            "test.gguf: these tensors are missing: output_norm.weight; these tensors are not supported: "
            "blk.0.attn_q_norm.weight, blk.1.ffn_gate_inp.weight, blk.2.attn_norm.weight, token_embd.scale");
}

TEST(GgufTensors, FactorsOfLlamaAndHeadsOfRerankersInTheirOwnFamiliesOnly) {
  for (const std::string architecture :
       {"llama", "mistral3", "qwen2", "qwen3", "qwen2moe", "olmoe", "glm4", "granite"}) {
    SCOPED_TRACE(architecture);
    const auto with = [&](const char* name, const std::vector<uint64_t>& sizes) {
      GgufWriter writer = small_model(architecture, {.kv_heads = 4});
      std::vector<float> ones(sizes.size() == 1 ? sizes[0] : sizes[0] * sizes[1], 1.0f);
      writer.add(name, ones, sizes);
      return refusal(writer);
    };
    const std::string refused = "test.gguf: these tensors are not supported: ";
    EXPECT_EQ(with("rope_freqs.weight", {8}),
              architecture == "llama" || architecture == "mistral3" || architecture == "granite"
                  ? ""
                  : refused + "rope_freqs.weight");
    EXPECT_EQ(with("cls.output.weight", {64, 2}), architecture == "qwen3" ? "" : refused + "cls.output.weight");
  }
}

}  // namespace
}  // namespace tidal::test
