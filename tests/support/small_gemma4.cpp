#include "support/small_gemma4.h"

#include <functional>
#include <random>

namespace tidal::test {
namespace {

/// Adds tensors of normally distributed numbers to a file.
class RandomTensors {
 public:
  explicit RandomTensors(GgufWriter& writer) : writer_(writer) {}

  void matrix(const std::string& name, uint64_t rows, uint64_t cols) { add(name, {cols, rows}, 0, 0.2f); }
  void stack(const std::string& name, uint64_t count, uint64_t rows, uint64_t cols) {
    add(name, {cols, rows, count}, 0, 0.2f);
  }
  void vector(const std::string& name, uint64_t size, float mean = 1) { add(name, {size}, mean, 0.1f); }

 private:
  void add(const std::string& name, const std::vector<uint64_t>& sizes, float mean, float spread) {
    uint64_t count = 1;
    for (const uint64_t size : sizes) count *= size;
    std::normal_distribution<float> normal(mean, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    writer_.add(name, values, sizes);
  }

  GgufWriter& writer_;
  std::mt19937 random_{11};
};

void set_keys(GgufWriter& writer, const SmallGemma4& shape) {
  const std::string prefix = "gemma4.";
  const auto whole = [](uint64_t value) { return static_cast<uint32_t>(value); };
  std::vector<uint32_t> kv_heads, ffns;
  std::vector<bool> windows;
  std::vector<std::string> tokens;
  for (uint64_t l = 0; l < shape.layers; ++l) {
    windows.push_back(shape.window(l));
    kv_heads.push_back(whole(shape.window(l) ? shape.window_heads : shape.whole_heads));
    ffns.push_back(whole(shape.double_wide && !shape.has_kv(l) ? 2 * shape.ffn : shape.ffn));
  }
  for (uint64_t i = 0; i < shape.vocab; ++i) tokens.push_back("token" + std::to_string(i));
  writer.set("general.architecture", "gemma4")
      .set("general.name", "small")
      .set("general.file_type", 0u)
      .set(prefix + "block_count", whole(shape.layers))
      .set(prefix + "context_length", 128u)
      .set(prefix + "embedding_length", whole(shape.width))
      .set(prefix + "embedding_length_per_layer_input", whole(shape.layer_input))
      .set(prefix + "attention.head_count", whole(shape.heads))
      .set(prefix + "attention.head_count_kv", kv_heads)
      .set(prefix + "attention.key_length", whole(shape.whole_dim))
      .set(prefix + "attention.value_length", whole(shape.whole_dim))
      .set(prefix + "attention.key_length_swa", whole(shape.window_dim))
      .set(prefix + "attention.value_length_swa", whole(shape.window_dim))
      .set(prefix + "attention.shared_kv_layers", whole(shape.shared_kv))
      .set(prefix + "attention.sliding_window", 32u)
      .set_raw(prefix + "attention.sliding_window_pattern", GGUF_TYPE_ARRAY, list_of(windows))
      .set(prefix + "attention.layer_norm_rms_epsilon", 1e-6f)
      .set(prefix + "rope.freq_base", 10000.0f)
      .set(prefix + "rope.freq_base_swa", 500.0f)
      .set(prefix + "rope.dimension_count", whole(shape.whole_dim))
      .set(prefix + "rope.dimension_count_swa", whole(shape.window_dim))
      .set(prefix + "final_logit_softcapping", 3.0f)  // so that it bites
      .set(prefix + "vocab_size", whole(shape.vocab))
      .set("tokenizer.ggml.model", "none")
      .set("tokenizer.ggml.tokens", tokens);
  if (shape.double_wide) {
    writer.set(prefix + "feed_forward_length", ffns);
  } else {
    writer.set(prefix + "feed_forward_length", whole(shape.ffn));
  }
  if (shape.experts > 0) {
    writer.set(prefix + "expert_count", whole(shape.experts))
        .set(prefix + "expert_used_count", whole(shape.experts_used))
        .set(prefix + "expert_feed_forward_length", whole(shape.expert_ffn));
  }
}

void add_attention(RandomTensors& tensors, const SmallGemma4& shape, uint64_t layer, const std::string& block) {
  const bool window = shape.window(layer);
  const uint64_t dim = window ? shape.window_dim : shape.whole_dim, q_width = shape.heads * dim;
  const uint64_t kv_width = dim * (window ? shape.window_heads : shape.whole_heads);
  tensors.vector(block + "attn_norm.weight", shape.width);
  tensors.matrix(block + "attn_q.weight", q_width, shape.width);
  // Scores are what normed queries and keys make as they are: of weights of 1 attention would be a single peak.
  tensors.vector(block + "attn_q_norm.weight", dim, 0.5f);
  if (shape.has_kv(layer)) {
    tensors.matrix(block + "attn_k.weight", kv_width, shape.width);
    tensors.vector(block + "attn_k_norm.weight", dim, 0.5f);
    if (window || !shape.keys_as_values) tensors.matrix(block + "attn_v.weight", kv_width, shape.width);
  }
  tensors.matrix(block + "attn_output.weight", shape.width, q_width);
  tensors.vector(block + "post_attention_norm.weight", shape.width);
}

void add_experts(RandomTensors& tensors, const SmallGemma4& shape, const std::string& block) {
  tensors.matrix(block + "ffn_gate_inp.weight", shape.experts, shape.width);
  tensors.vector(block + "ffn_gate_inp.scale", shape.width, 8);  // so that experts are not about as good
  for (const char* norm : {"pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"}) {
    tensors.vector(block + norm + ".weight", shape.width);
  }
  if (shape.fused) {
    tensors.stack(block + "ffn_gate_up_exps.weight", shape.experts, 2 * shape.expert_ffn, shape.width);
  } else {
    tensors.stack(block + "ffn_gate_exps.weight", shape.experts, shape.expert_ffn, shape.width);
    tensors.stack(block + "ffn_up_exps.weight", shape.experts, shape.expert_ffn, shape.width);
  }
  tensors.stack(block + "ffn_down_exps.weight", shape.experts, shape.width, shape.expert_ffn);
  tensors.vector(block + "ffn_down_exps.scale", shape.experts, 0.8f);
}

}  // namespace

Bytes list_of(const std::vector<bool>& values) {
  Bytes bytes;
  append(bytes, static_cast<uint32_t>(GGUF_TYPE_BOOL));
  append(bytes, static_cast<uint64_t>(values.size()));
  for (const bool value : values) append(bytes, static_cast<uint8_t>(value));
  return bytes;
}

GgufWriter small_gemma4(const SmallGemma4& shape) {
  GgufWriter writer;
  set_keys(writer, shape);
  RandomTensors tensors(writer);
  tensors.matrix("token_embd.weight", shape.vocab, shape.width);
  tensors.vector("output_norm.weight", shape.width);
  std::vector<float> factors(shape.whole_dim / 2, 1e30f);
  for (uint64_t i = 0; i < shape.whole_dim / 8; ++i) factors[i] = 1;
  writer.add("rope_freqs.weight", factors, {factors.size()});
  if (shape.layer_input > 0) {
    const uint64_t all = shape.layers * shape.layer_input;
    tensors.matrix("per_layer_token_embd.weight", shape.vocab, all);
    tensors.matrix("per_layer_model_proj.weight", all, shape.width);
    tensors.vector("per_layer_proj_norm.weight", shape.layer_input);
  }
  for (uint64_t l = 0; l < shape.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    const uint64_t ffn = shape.double_wide && !shape.has_kv(l) ? 2 * shape.ffn : shape.ffn;
    add_attention(tensors, shape, l, block);
    tensors.vector(block + "ffn_norm.weight", shape.width);
    tensors.matrix(block + "ffn_gate.weight", ffn, shape.width);
    tensors.matrix(block + "ffn_up.weight", ffn, shape.width);
    tensors.matrix(block + "ffn_down.weight", shape.width, ffn);
    tensors.vector(block + "post_ffw_norm.weight", shape.width);
    if (shape.experts > 0) add_experts(tensors, shape, block);
    tensors.vector(block + "layer_output_scale.weight", 1, 0.8f);
    if (shape.layer_input == 0) continue;
    tensors.matrix(block + "inp_gate.weight", shape.layer_input, shape.width);
    tensors.matrix(block + "proj.weight", shape.width, shape.layer_input);
    tensors.vector(block + "post_norm.weight", shape.width);
  }
  return writer;
}

GgufWriter quantised(const GgufWriter& model, const SmallGemma4& shape) {
  GgufWriter file = model;
  const auto quantise = [&](const std::string& name, ggml_type type) {
    if (!file.has_tensor(name)) return;
    const GgufWriter::Tensor from = file.tensor(name);
    const auto cols = static_cast<int64_t>(from.sizes[0]);
    if (cols % ggml_blck_size(type) != 0) type = GGML_TYPE_Q8_0;
    int64_t rows = 1;
    for (size_t d = 1; d < from.sizes.size(); ++d) rows *= static_cast<int64_t>(from.sizes[d]);
    auto& to = file.add(name, type, from.sizes);
    ggml_quantize_chunk(type, reinterpret_cast<const float*>(from.data.data()), to.data.data(), 0, rows, cols, nullptr);
  };
  quantise("token_embd.weight", GGML_TYPE_Q6_K);
  quantise("per_layer_token_embd.weight", GGML_TYPE_Q5_K);
  quantise("per_layer_model_proj.weight", GGML_TYPE_BF16);
  for (uint64_t l = 0; l < shape.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_gate_up_exps",
                             "ffn_gate_exps", "ffn_up_exps", "inp_gate", "proj"}) {
      quantise(block + name + ".weight", GGML_TYPE_Q4_K);
    }
    for (const char* name : {"ffn_down", "ffn_down_exps"}) quantise(block + name + ".weight", GGML_TYPE_Q6_K);
  }
  return file;
}

}  // namespace tidal::test
