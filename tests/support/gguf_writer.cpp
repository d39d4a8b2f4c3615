#include "support/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <stdexcept>

namespace tidal::test {
namespace {

void append_text(Bytes& bytes, std::string_view text) {
  append(bytes, static_cast<uint64_t>(text.size()));
  append_bytes(bytes, text.data(), text.size());
}

template <typename T>
Bytes value_bytes(const T& value) {
  Bytes bytes;
  append(bytes, value);
  return bytes;
}

size_t padded(size_t size, size_t alignment) { return (size + alignment - 1) / alignment * alignment; }

}  // namespace

void append_bytes(Bytes& bytes, const void* start, size_t count) {
  const size_t size = bytes.size();
  bytes.resize(size + count);
  if (count > 0) std::memcpy(bytes.data() + size, start, count);
}

GgufWriter& GgufWriter::set_raw(const std::string& key, uint32_t type, const Bytes& value) {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](const Key& other) { return other.name == key; });
  if (found != keys_.end()) {
    *found = {key, type, value};
  } else {
    keys_.push_back({key, type, value});
  }
  return *this;
}

GgufWriter& GgufWriter::set(const std::string& key, bool value) {
  return set_raw(key, GGUF_TYPE_BOOL, value_bytes(static_cast<uint8_t>(value)));
}
GgufWriter& GgufWriter::set(const std::string& key, uint16_t value) {
  return set_raw(key, GGUF_TYPE_UINT16, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, uint32_t value) {
  return set_raw(key, GGUF_TYPE_UINT32, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, int32_t value) {
  return set_raw(key, GGUF_TYPE_INT32, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, uint64_t value) {
  return set_raw(key, GGUF_TYPE_UINT64, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, float value) {
  return set_raw(key, GGUF_TYPE_FLOAT32, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, double value) {
  return set_raw(key, GGUF_TYPE_FLOAT64, value_bytes(value));
}
GgufWriter& GgufWriter::set(const std::string& key, const char* value) {
  Bytes bytes;
  append_text(bytes, value);
  return set_raw(key, GGUF_TYPE_STRING, bytes);
}
GgufWriter& GgufWriter::set(const std::string& key, const std::vector<uint32_t>& values) {
  Bytes bytes = value_bytes(static_cast<uint32_t>(GGUF_TYPE_UINT32));
  append(bytes, static_cast<uint64_t>(values.size()));
  for (const uint32_t value : values) append(bytes, value);
  return set_raw(key, GGUF_TYPE_ARRAY, bytes);
}
GgufWriter& GgufWriter::set(const std::string& key, const std::vector<std::string>& values) {
  Bytes bytes = value_bytes(static_cast<uint32_t>(GGUF_TYPE_STRING));
  append(bytes, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) append_text(bytes, value);
  return set_raw(key, GGUF_TYPE_ARRAY, bytes);
}

GgufWriter& GgufWriter::repeat(const std::string& key) {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](const Key& other) { return other.name == key; });
  if (found == keys_.end()) throw std::logic_error("no key " + key);
  keys_.push_back(Key(*found));
  return *this;
}

GgufWriter& GgufWriter::erase(const std::string& key) {
  if (std::erase_if(keys_, [&](const Key& other) { return other.name == key; }) == 0) {
    throw std::logic_error("no key " + key);
  }
  return *this;
}

GgufWriter::Tensor& GgufWriter::add(const std::string& name, ggml_type type, const std::vector<uint64_t>& sizes) {
  size_t bytes = ggml_row_size(type, static_cast<int64_t>(sizes.at(0)));
  for (size_t d = 1; d < sizes.size(); ++d) bytes *= sizes[d];
  Tensor tensor{name, type, sizes, Bytes(bytes), std::nullopt};
  for (Tensor& other : tensors_) {
    if (other.name == name) return other = tensor;
  }
  return tensors_.emplace_back(tensor);
}

GgufWriter::Tensor& GgufWriter::add(const std::string& name, const std::vector<float>& values,
                                    const std::vector<uint64_t>& sizes) {
  Tensor& tensor = add(name, GGML_TYPE_F32, sizes);
  if (tensor.data.size() != values.size() * sizeof(float)) throw std::logic_error(name + ": sizes and values differ");
  std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  return tensor;
}

GgufWriter::Tensor& GgufWriter::tensor(std::string_view name) {
  for (Tensor& tensor : tensors_) {
    if (tensor.name == name) return tensor;
  }
  throw std::logic_error("no tensor " + std::string(name));
}

bool GgufWriter::has_tensor(std::string_view name) const {
  return std::any_of(tensors_.begin(), tensors_.end(), [&](const Tensor& tensor) { return tensor.name == name; });
}

void GgufWriter::erase_tensor(std::string_view name) {
  if (std::erase_if(tensors_, [&](const Tensor& tensor) { return tensor.name == name; }) == 0) {
    throw std::logic_error("no tensor " + std::string(name));
  }
}

std::vector<GgufWriter> GgufWriter::split(int count, bool padded_alike) const {
  std::vector<GgufWriter> parts(static_cast<size_t>(count));
  parts.front().keys_ = keys_;
  for (int index = 0; index < count; ++index) {
    GgufWriter& part = parts[static_cast<size_t>(index)];
    part.version = version;
    part.set("split.no", static_cast<uint16_t>(index)).set("split.count", static_cast<uint16_t>(count));
    part.set("split.tensors.count", static_cast<int32_t>(tensors_.size()));
    if (padded_alike) part.padding = alignment();
  }
  for (size_t t = 0; t < tensors_.size(); ++t)
    parts[t * parts.size() / tensors_.size()].tensors_.push_back(tensors_[t]);
  return parts;
}

size_t GgufWriter::alignment() const {
  if (padding) return *padding;
  for (const Key& key : keys_) {
    if (key.name != GGUF_KEY_GENERAL_ALIGNMENT || key.type != GGUF_TYPE_UINT32) continue;
    uint32_t value = 0;
    std::memcpy(&value, key.value.data(), sizeof(value));
    if (value > 0 && value <= 4096) return value;  // a lie that no file could be padded to is only written down
  }
  return GGUF_DEFAULT_ALIGNMENT;
}

Bytes GgufWriter::header() const {
  Bytes bytes;
  for (const char letter : magic) bytes.push_back(static_cast<std::byte>(letter));
  append(bytes, version);
  append(bytes, tensor_count.value_or(tensors_.size()));
  append(bytes, key_count.value_or(keys_.size()));
  for (const Key& key : keys_) {
    append_text(bytes, key.name);
    append(bytes, key.type);
    append_bytes(bytes, key.value.data(), key.value.size());
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_text(bytes, tensor.name);
    append(bytes, static_cast<uint32_t>(tensor.sizes.size()));
    for (const uint64_t size : tensor.sizes) append(bytes, size);
    append(bytes, static_cast<uint32_t>(tensor.type));
    append(bytes, tensor.offset.value_or(offset));
    offset += padded(tensor.data.size(), alignment());
  }
  return bytes;
}

size_t GgufWriter::header_bytes() const { return padded(header().size(), alignment()); }

Bytes GgufWriter::bytes() const {
  Bytes bytes = header();
  const size_t align = alignment();
  bytes.resize(padded(bytes.size(), align));
  for (const Tensor& tensor : tensors_) {
    append_bytes(bytes, tensor.data.data(), tensor.data.size());
    bytes.resize(padded(bytes.size(), align));
  }
  return bytes;
}

void GgufWriter::save(const std::string& path) const {
  const Bytes content = bytes();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

namespace {

/// The tensors of a recurrent layer but for its norms before attention and MLP. Decays of a few rows, so that a test's
/// context is longer than what the layer remembers.
template <typename Matrix, typename Vector>
void add_delta(const std::string& architecture, const std::string& block, const SmallShape& shape, const Matrix& matrix,
               const Vector& vector) {
  const uint64_t values = shape.value_heads * shape.delta_dim, mixed = 2 * shape.key_heads * shape.delta_dim + values;
  matrix(block + "attn_qkv.weight", mixed, shape.width);
  matrix(block + "attn_gate.weight", values, shape.width);
  if (architecture == "qwen3next") {
    matrix(block + "ssm_ba.weight", 2 * shape.value_heads, shape.width);
  } else {
    matrix(block + "ssm_beta.weight", shape.value_heads, shape.width);
    matrix(block + "ssm_alpha.weight", shape.value_heads, shape.width);
  }
  matrix(block + "ssm_conv1d.weight", mixed, shape.taps);
  vector(block + "ssm_dt.bias", shape.value_heads, 0.0f);
  vector(block + "ssm_a", shape.value_heads, -0.5f);
  vector(block + "ssm_norm.weight", shape.delta_dim, 1.0f);
  matrix(block + "ssm_out.weight", shape.width, values);
}

}  // namespace

GgufWriter small_model(const std::string& architecture, const SmallShape& shape) {
  const uint64_t q_width = shape.heads * shape.head_dim(), kv_width = shape.kv_heads * shape.head_dim();
  GgufWriter writer;
  std::mt19937 random(7);
  const auto weights = [&](const std::string& name, const std::vector<uint64_t>& sizes, float mean, float spread) {
    uint64_t count = 1;
    for (const uint64_t size : sizes) count *= size;
    std::normal_distribution<float> normal(mean, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    writer.add(name, values, sizes);
  };
  const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t cols) {
    weights(name, {cols, rows}, 0.0f, 0.2f);
  };
  const bool gpt_oss = architecture == "gpt-oss";
  const bool hybrid = architecture == "qwen35" || architecture == "qwen35moe" || architecture == "qwen3next";
  const bool switched = architecture == "qwen2moe" || architecture == "qwen35moe" || architecture == "qwen3next";
  const bool always = switched || gpt_oss || (architecture.ends_with("moe") && architecture != "granitemoe");
  const uint64_t experts = shape.experts > 0 ? shape.experts : always ? 5 : 0;
  const auto stack = [&](const std::string& name, uint64_t rows, uint64_t cols) {
    weights(name, {cols, rows, experts}, 0.0f, 0.2f);
  };
  const auto vector = [&](const std::string& name, uint64_t size, float mean) { weights(name, {size}, mean, 0.1f); };

  std::vector<std::string> tokens;
  for (uint64_t i = 0; i < shape.vocab; ++i) tokens.push_back("token" + std::to_string(i));
  const std::string prefix = architecture + ".";
  writer.set("general.architecture", architecture.c_str())
      .set("general.name", "small")
      .set("general.file_type", 0u)
      .set(prefix + "block_count", static_cast<uint32_t>(shape.layers))
      .set(prefix + "context_length", 128u)
      .set(prefix + "embedding_length", static_cast<uint32_t>(shape.width))
      .set(prefix + "feed_forward_length", static_cast<uint32_t>(shape.ffn))
      .set(prefix + "attention.head_count", static_cast<uint32_t>(shape.heads))
      .set(prefix + "attention.head_count_kv", static_cast<uint32_t>(shape.kv_heads))
      .set(prefix + "attention.layer_norm_rms_epsilon", 1e-5f)
      .set(prefix + "rope.freq_base", 10000.0f)
      .set(prefix + "vocab_size", static_cast<uint32_t>(shape.vocab))
      .set("tokenizer.ggml.model", "none")
      .set("tokenizer.ggml.tokens", tokens);
  if (shape.head_size > 0) {
    const auto size = static_cast<uint32_t>(shape.head_size);
    writer.set(prefix + "attention.key_length", size).set(prefix + "attention.value_length", size);
  }
  if (experts > 0) {
    writer.set(prefix + "expert_count", static_cast<uint32_t>(experts))
        .set(prefix + "expert_used_count", static_cast<uint32_t>(shape.experts_used));
  }
  if (experts > 0 && (architecture.starts_with("qwen") || gpt_oss)) {
    writer.set(prefix + "expert_feed_forward_length", static_cast<uint32_t>(shape.expert_ffn));
  }
  if (architecture.starts_with("granite")) {
    writer.set(prefix + "embedding_scale", 12.0f).set(prefix + "residual_scale", 0.6f);
    writer.set(prefix + "attention.scale", 0.4f).set(prefix + "logit_scale", 3.0f);
  }
  const bool gemma = architecture == "gemma2" || architecture == "gemma3";
  if (gemma || architecture == "olmo2" || gpt_oss) {
    writer.set(prefix + "attention.sliding_window", 32u).set(prefix + "attention.sliding_window_pattern", 2u);
  }
  if (gemma || gpt_oss) writer.set(prefix + "rope.freq_base_swa", 500.0f);
  if (architecture == "gemma2") {  // so that they bite
    writer.set(prefix + "attn_logit_softcapping", 2.0f).set(prefix + "final_logit_softcapping", 3.0f);
  }
  if (architecture == "mistral3") {
    writer.set(prefix + "attention.temperature_scale", 0.1f);
    writer.set(prefix + "rope.scaling.original_context_length", 16u);
  }
  if (hybrid) {
    writer.set(prefix + "full_attention_interval", static_cast<uint32_t>(shape.interval))
        .set(prefix + "ssm.conv_kernel", static_cast<uint32_t>(shape.taps))
        .set(prefix + "ssm.state_size", static_cast<uint32_t>(shape.delta_dim))
        .set(prefix + "ssm.group_count", static_cast<uint32_t>(shape.key_heads))
        .set(prefix + "ssm.time_step_rank", static_cast<uint32_t>(shape.value_heads))
        .set(prefix + "ssm.inner_size", static_cast<uint32_t>(shape.value_heads * shape.delta_dim))
        .set(prefix + "rope.dimension_count", 8u);
    if (architecture != "qwen3next") writer.set(prefix + "rope.dimension_sections", std::vector<uint32_t>{2, 1, 1, 0});
  }
  if (switched || (architecture == "granitemoe" && experts > 0)) {
    writer.set(prefix + "expert_shared_feed_forward_length", static_cast<uint32_t>(shape.shared_ffn));
  }

  matrix("token_embd.weight", shape.vocab, shape.width);
  vector("output_norm.weight", shape.width, 1.0f);
  if (architecture == "qwen2moe" || architecture.starts_with("olmo") || gpt_oss)
    matrix("output.weight", shape.vocab, shape.width);
  for (uint64_t l = 0; l < shape.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    if (architecture != "olmo2") vector(block + "attn_norm.weight", shape.width, 1.0f);
    const bool recurrent = hybrid && (l + 1) % shape.interval != 0;
    if (recurrent) add_delta(architecture, block, shape, matrix, vector);
    if (!recurrent) {
      matrix(block + "attn_q.weight", hybrid ? 2 * q_width : q_width, shape.width);
      matrix(block + "attn_k.weight", kv_width, shape.width);
      matrix(block + "attn_v.weight", kv_width, shape.width);
    }
    if (architecture.starts_with("qwen2") || architecture == "seed_oss" || gpt_oss) {
      vector(block + "attn_q.bias", q_width, 0.0f);
      vector(block + "attn_k.bias", kv_width, 0.0f);
      vector(block + "attn_v.bias", kv_width, 0.0f);
    }
    if ((architecture.starts_with("qwen3") || architecture == "gemma3") && !recurrent) {
      vector(block + "attn_q_norm.weight", shape.head_dim(), 1.0f);
      vector(block + "attn_k_norm.weight", shape.head_dim(), 1.0f);
    }
    if (architecture.starts_with("olmo")) {
      vector(block + "attn_q_norm.weight", q_width, 1.0f);
      vector(block + "attn_k_norm.weight", kv_width, 1.0f);
    }
    if (!recurrent) matrix(block + "attn_output.weight", shape.width, q_width);
    if (gpt_oss) vector(block + "attn_output.bias", shape.width, 0.0f);
    if (gpt_oss) vector(block + "attn_sinks.weight", shape.heads, 1.0f);
    const bool post_norms = architecture == "olmo2" || architecture == "glm4" || gemma;
    const bool named_post = architecture == "seed_oss" || hybrid || gpt_oss;  // the norm before the MLP
    if (post_norms || named_post) vector(block + "post_attention_norm.weight", shape.width, 1.0f);
    if (post_norms) vector(block + "post_ffw_norm.weight", shape.width, 1.0f);
    if (architecture != "olmo2" && !named_post) vector(block + "ffn_norm.weight", shape.width, 1.0f);
    if (experts > 0) {
      const uint64_t ffn = architecture.starts_with("qwen") || gpt_oss ? shape.expert_ffn : shape.ffn;
      matrix(block + "ffn_gate_inp.weight", experts, shape.width);
      stack(block + "ffn_gate_exps.weight", ffn, shape.width);
      stack(block + "ffn_up_exps.weight", ffn, shape.width);
      stack(block + "ffn_down_exps.weight", shape.width, ffn);
      if (gpt_oss) {
        vector(block + "ffn_gate_inp.bias", experts, 0.0f);
        weights(block + "ffn_gate_exps.bias", {ffn, experts}, 0.0f, 4.0f);  // so that clamps bite
        weights(block + "ffn_up_exps.bias", {ffn, experts}, 0.0f, 4.0f);
        weights(block + "ffn_down_exps.bias", {shape.width, experts}, 0.0f, 0.1f);
      }
      if (!switched && architecture != "granitemoe") continue;
      if (switched) vector(block + "ffn_gate_inp_shexp.weight", shape.width, 0.0f);
      matrix(block + "ffn_gate_shexp.weight", shape.shared_ffn, shape.width);
      matrix(block + "ffn_up_shexp.weight", shape.shared_ffn, shape.width);
      matrix(block + "ffn_down_shexp.weight", shape.width, shape.shared_ffn);
      continue;
    }
    const bool fused = architecture == "glm4" || architecture == "phi3";
    if (!fused) matrix(block + "ffn_gate.weight", shape.ffn, shape.width);
    matrix(block + "ffn_up.weight", fused ? 2 * shape.ffn : shape.ffn, shape.width);
    matrix(block + "ffn_down.weight", shape.width, shape.ffn);
  }
  return writer;
}

}  // namespace tidal::test
