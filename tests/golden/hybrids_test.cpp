// Small random hybrids: what their files may say of recurrent layers, and how a text comes to the engine. Our logits
// are llama.cpp's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "golden/engine_logits.h"
#include "golden/llama_reference.h"
#include "support/gguf_writer.h"
#include "support/loading.h"

namespace tidal::golden {
namespace {

using test::GgufWriter;
using test::SmallShape;

/// Root mean square difference, in units of theirs.
double apart(const std::vector<float>& ours, const std::vector<float>& theirs) {
  return deviation(ours, theirs) / deviation(theirs, std::vector<float>(theirs.size()));
}

/// Rows of a tensor [cols, rows] in another order: `row_of(i)` becomes row i.
void reorder(GgufWriter::Tensor& tensor, const std::function<uint64_t(uint64_t)>& row_of) {
  const uint64_t rows = tensor.sizes[1];
  const size_t bytes = tensor.data.size() / rows;
  const test::Bytes before = tensor.data;
  for (uint64_t i = 0; i < rows; ++i) {
    const auto from = before.begin() + static_cast<ptrdiff_t>(row_of(i) * bytes);
    std::copy(from, from + static_cast<ptrdiff_t>(bytes), tensor.data.begin() + static_cast<ptrdiff_t>(i * bytes));
  }
}

/// qwen3next files as they were at first: q, k, v and z in one tensor, one key head's behind the other's.
void join_projections(GgufWriter& file, const SmallShape& shape) {
  const uint64_t dim = shape.delta_dim, keys = shape.key_heads * dim, values = shape.value_heads * dim;
  const uint64_t own = values / shape.key_heads, group = 2 * dim + 2 * own;
  for (uint64_t l = 0; l < shape.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    if ((l + 1) % shape.interval == 0) continue;
    test::Bytes data = file.tensor(block + "attn_qkv.weight").data;
    const test::Bytes gates = file.tensor(block + "attn_gate.weight").data;
    data.insert(data.end(), gates.begin(), gates.end());
    file.erase_tensor(block + "attn_qkv.weight");
    file.erase_tensor(block + "attn_gate.weight");
    GgufWriter::Tensor& joined = file.add(block + "ssm_in.weight", GGML_TYPE_F32, {shape.width, 2 * keys + 2 * values});
    joined.data = data;
    reorder(joined, [&](uint64_t i) {
      const uint64_t head = i / group, at = i % group;
      if (at < dim) return head * dim + at;
      if (at < 2 * dim) return keys + head * dim + at - dim;
      if (at < 2 * dim + own) return 2 * keys + head * own + at - 2 * dim;
      return 2 * keys + values + head * own + at - 2 * dim - own;
    });
  }
}

/// What follows the layers predicts further tokens; libllama leaves it out.
void add_further_layer(GgufWriter& file, const std::string& prefix, const SmallShape& shape) {
  file.set(prefix + "block_count", static_cast<uint32_t>(shape.layers + 1)).set(prefix + "nextn_predict_layers", 1u);
  const std::string block = "blk." + std::to_string(shape.layers) + ".";
  const std::string like = "blk." + std::to_string(shape.layers - 1) + ".";  // one that attends
  for (const char* name : {"attn_norm", "post_attention_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm",
                           "attn_k_norm", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
    const GgufWriter::Tensor from = file.tensor(like + name + ".weight");
    file.add(block + name + ".weight", GGML_TYPE_F32, from.sizes).data = from.data;
  }
  const uint64_t width = shape.width;
  file.add(block + "nextn.eh_proj.weight", std::vector<float>(2 * width * width, 0.1f), {2 * width, width});
  file.add(block + "nextn.enorm.weight", std::vector<float>(width, 1.0f), {width});
  file.add(block + "nextn.hnorm.weight", std::vector<float>(width, 1.0f), {width});
}

struct Kind {
  const char* name;
  const char* architecture;
  SmallShape shape = {};
  std::function<void(GgufWriter&, const std::string& prefix, const SmallShape&)> change = {};
};

const SmallShape kDeep{.layers = 8, .interval = 4};

const Kind kKinds[] = {
    {"qwen35", "qwen35", kDeep},
    {"qwen35moe", "qwen35moe", {.layers = 4, .experts = 2, .interval = 4}},
    {"qwen3next", "qwen3next", {.layers = 4, .experts = 2, .interval = 4}},
    {"one_key_head", "qwen35", {.key_heads = 1, .value_heads = 3}},
    {"six_value_heads", "qwen35", {.key_heads = 3, .value_heads = 6}},
    {"six_value_heads_neighbours", "qwen3next", {.experts = 2, .key_heads = 3, .value_heads = 6}},
    {"as_many_value_heads", "qwen3next", {.experts = 2, .key_heads = 2, .value_heads = 2}},
    {"three_taps", "qwen35", {.taps = 3}},
    {"joined_projections",
     "qwen3next",
     {.experts = 2, .key_heads = 2, .value_heads = 6},
     [](GgufWriter& file, const std::string&, const SmallShape& shape) { join_projections(file, shape); }},
    {"layers_one_by_one",
     "qwen35",
     {.layers = 3},
     [](GgufWriter& file, const std::string& prefix, const SmallShape&) {
       // Said of the same layers as the interval: 0 and 2 are recurrent.
       file.erase(prefix + "full_attention_interval");
       file.set(prefix + "attention.recurrent_layers", std::vector<uint32_t>{1, 0, 1});
     }},
    {"further_layer",
     "qwen35",
     {.layers = 4},
     [](GgufWriter& file, const std::string& prefix, const SmallShape& shape) {
       add_further_layer(file, prefix, shape);
     }},
    {"whole_rotation",
     "qwen35",
     {},
     [](GgufWriter& file, const std::string& prefix, const SmallShape&) {
       file.set(prefix + "rope.dimension_count", 16u);
       file.set(prefix + "rope.dimension_sections", std::vector<uint32_t>{3, 3, 2, 0});
     }},
};

class Hybrids : public testing::TestWithParam<Kind> {};

// With two experts every token goes through both, so that no rounding decides. In float32 the engines differ by the
// rounding of our K and V to bf16 (2^-9 of an element at most, of random sign, in one of two to four layers);
// everything else is float32 on both sides. 2e-3 is that half unit.
constexpr double kRounding = 2e-3;

TEST_P(Hybrids, LogitsAreLlamasHoweverTheTextComes) {
  const Kind& kind = GetParam();
  GgufWriter file = test::small_model(kind.architecture, kind.shape);
  if (kind.change) kind.change(file, std::string(kind.architecture) + ".", kind.shape);
  const test::TemporaryFolder folder;
  const std::string path = folder.file("model.gguf");
  file.save(path);
  const std::vector<float> theirs = LlamaReference(path, 128, 1).logits(some_tokens());
  EXPECT_LT(apart(our_logits(path, some_tokens(), "reference", kTokens), theirs), kRounding);
  EXPECT_LT(apart(our_logits(path, some_tokens(), "reference", 1), theirs), kRounding);
  EXPECT_LT(apart(our_logits(path, some_tokens(), "cpu", 1), theirs), kRounding);
  EXPECT_LT(apart(our_logits(path, some_tokens(), "cpu", 7), theirs), kRounding);
  if (has_cuda_device()) {
    // It rounds to bf16 what its products multiply, too, in every layer. As architectures_test.cpp derives it: K and V
    // of two layers move logits by less than 2^-7, and a layer has nine times as many roundings.
    const double most = 2 * 3 * 0x1p-7 * std::sqrt(static_cast<double>(kind.shape.layers) / 2);
    for (const size_t chunk : {1, 7, 40}) {
      const double distance = apart(our_logits(path, some_tokens(), "cuda", chunk), theirs);
      std::printf("  cuda, chunks of %zu: apart by %.5f\n", chunk, distance);
      EXPECT_LT(distance, most);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Hybrids, testing::ValuesIn(kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

/// A model of the types that llama.cpp's mixes have, those of recurrent layers among them; `floats`: the same numbers
/// in float32.
GgufWriter mixed_model(bool floats) {
  GgufWriter file = test::small_model("qwen35", {.layers = 4, .width = 256, .ffn = 512, .delta_dim = 64});
  const std::pair<std::string, ggml_type> types[] = {
      {"attn_qkv", GGML_TYPE_Q5_K}, {"attn_gate", GGML_TYPE_Q4_K}, {"ssm_out", GGML_TYPE_Q5_K},
      {"ssm_beta", GGML_TYPE_Q8_0}, {"ssm_alpha", GGML_TYPE_Q8_0}, {"attn_q", GGML_TYPE_Q4_K},
      {"attn_k", GGML_TYPE_Q4_K},   {"attn_v", GGML_TYPE_Q6_K},    {"attn_output", GGML_TYPE_Q4_K},
      {"ffn_gate", GGML_TYPE_Q4_0}, {"ffn_up", GGML_TYPE_Q4_0},    {"ffn_down", GGML_TYPE_Q6_K}};
  for (int l = 0; l < 4; ++l) {
    for (const auto& [name, type] : types) {
      const bool mlp = name.starts_with("ffn");
      const bool of_recurrent = name.starts_with("ssm") || name == "attn_qkv" || name == "attn_gate";
      if (!mlp && (l % 2 == 0) != of_recurrent) continue;
      const GgufWriter::Tensor from = file.tensor("blk." + std::to_string(l) + "." + name + ".weight");
      const auto cols = static_cast<int64_t>(from.sizes[0]), rows = static_cast<int64_t>(from.sizes[1]);
      std::vector<std::byte> quantised(ggml_row_size(type, cols) * static_cast<size_t>(rows));
      ggml_quantize_chunk(type, reinterpret_cast<const float*>(from.data.data()), quantised.data(), 0, rows, cols,
                          nullptr);
      auto& to = file.add(from.name, floats ? GGML_TYPE_F32 : type, from.sizes);
      if (floats) {
        ggml_get_type_traits(type)->to_float(quantised.data(), reinterpret_cast<float*>(to.data.data()), rows * cols);
      } else {
        std::memcpy(to.data.data(), quantised.data(), quantised.size());
      }
    }
  }
  return file;
}

// The reference computes what the weights say, as llama.cpp does where they are float32. For quantised weights
// llama.cpp rounds activations to 8 bits; so does our CPU backend, or to bf16, by other code, and ours must not lose
// more.
TEST(Hybrids, QuantisedLogitsAreLlamas) {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("model.gguf"), floats = folder.file("floats.gguf");
  mixed_model(false).save(path);
  mixed_model(true).save(floats);
  const std::vector<float> exact = LlamaReference(floats, 128, 1).logits(some_tokens());
  EXPECT_LT(apart(our_logits(path, some_tokens(), "reference", kTokens), exact), kRounding);
  const double rounding = apart(LlamaReference(path, 128, 1).logits(some_tokens()), exact);
  const double decoded = apart(our_logits(path, some_tokens(), "cpu", 1), exact),
               chunks = apart(our_logits(path, some_tokens(), "cpu", 40), exact);
  std::printf("  apart by %.5f, ours by %.5f decoding and %.5f in chunks of 40\n", rounding, decoded, chunks);
  EXPECT_LT(decoded, 1.25 * rounding);
  EXPECT_LT(chunks, 1.25 * rounding);
}

}  // namespace
}  // namespace tidal::golden
