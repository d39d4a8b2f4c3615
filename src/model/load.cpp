#include "model/load.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {
namespace {

/// Fetches tensors and collects everything that is wrong, so that one message names it all.
class Tensors {
 public:
  explicit Tensors(const GgufFile& file) : file_(file) {}

  Weight matrix(const std::string& name, int64_t rows, int64_t cols) { return find(name, rows, cols, true, false); }
  Weight optional_matrix(const std::string& name, int64_t rows, int64_t cols) {
    return find(name, rows, cols, false, false);
  }
  Weight vector(const std::string& name, int64_t cols) { return find(name, 1, cols, true, true); }
  Weight optional_vector(const std::string& name, int64_t cols) { return find(name, 1, cols, false, true); }

  /// True when any tensor's name begins with `prefix`; otherwise `prefix*` counts as missing, in one word.
  bool has_any(const std::string& prefix) {
    const auto next = file_.tensors().lower_bound(prefix);
    const bool found = next != file_.tensors().end() && next->first.starts_with(prefix);
    if (!found) missing_.push_back(prefix + "*");
    return found;
  }

  void report() const {
    if (missing_.empty() && wrong_.empty()) return;
    std::string text;
    if (!missing_.empty()) text += " these tensors are missing: " + joined(missing_);
    if (!wrong_.empty()) text += (text.empty() ? "" : ";") + std::string(" these tensors are wrong: ") + joined(wrong_);
    fail("{}:{}", file_.path(), text);
  }

 private:
  static std::string joined(const std::vector<std::string>& items) {
    constexpr size_t kShown = 60;  // more would fill the screen
    std::string list;
    for (size_t i = 0; i < std::min(items.size(), kShown); ++i) list += (i == 0 ? "" : ", ") + items[i];
    if (items.size() > kShown) list += fmt::format(" and {} more", items.size() - kShown);
    return list;
  }

  Weight find(const std::string& name, int64_t rows, int64_t cols, bool required, bool vector) {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) {
      if (required) missing_.push_back(name);
      return {};
    }
    const Weight& weight = found->second;
    if (weight.rows != rows || weight.cols != cols) {
      wrong_.push_back(fmt::format("{} is [{}, {}], expected [{}, {}]", name, weight.rows, weight.cols, rows, cols));
    } else if (vector && weight.type != GGML_TYPE_F32) {
      wrong_.push_back(fmt::format("{} is {}, expected f32", name, ggml_type_name(weight.type)));
    } else if (weight.type != GGML_TYPE_F32 && !ggml_get_type_traits(weight.type)->to_float) {
      wrong_.push_back(fmt::format("{} is {}, expected floats or a quantisation", name, ggml_type_name(weight.type)));
    }
    return weight;
  }

  const GgufFile& file_;
  std::vector<std::string> missing_, wrong_;
};

Layer read_layer(Tensors& tensors, const Hyperparameters& hp, int index) {
  const std::string prefix = fmt::format("blk.{}.", index);
  const bool qkv_bias = hp.architecture == "qwen2";
  const bool qk_norm = hp.architecture == "qwen3";
  const auto bias = [&](const char* name, int64_t size, bool required) {
    return required ? tensors.vector(prefix + name, size) : tensors.optional_vector(prefix + name, size);
  };
  Layer layer;
  layer.attn_norm = tensors.vector(prefix + "attn_norm.weight", hp.width);
  layer.wq = tensors.matrix(prefix + "attn_q.weight", hp.q_width(), hp.width);
  layer.wk = tensors.matrix(prefix + "attn_k.weight", hp.kv_width(), hp.width);
  layer.wv = tensors.matrix(prefix + "attn_v.weight", hp.kv_width(), hp.width);
  layer.bq = bias("attn_q.bias", hp.q_width(), qkv_bias);
  layer.bk = bias("attn_k.bias", hp.kv_width(), qkv_bias);
  layer.bv = bias("attn_v.bias", hp.kv_width(), qkv_bias);
  if (qk_norm) {
    layer.q_norm = tensors.vector(prefix + "attn_q_norm.weight", hp.head_dim);
    layer.k_norm = tensors.vector(prefix + "attn_k_norm.weight", hp.head_dim);
  }
  layer.wo = tensors.matrix(prefix + "attn_output.weight", hp.width, hp.q_width());
  layer.bo = bias("attn_output.bias", hp.width, false);
  layer.ffn_norm = tensors.vector(prefix + "ffn_norm.weight", hp.width);
  layer.gate = tensors.matrix(prefix + "ffn_gate.weight", hp.ffn, hp.width);
  layer.up = tensors.matrix(prefix + "ffn_up.weight", hp.ffn, hp.width);
  layer.down = tensors.matrix(prefix + "ffn_down.weight", hp.width, hp.ffn);
  layer.b_gate = bias("ffn_gate.bias", hp.ffn, false);
  layer.b_up = bias("ffn_up.bias", hp.ffn, false);
  layer.b_down = bias("ffn_down.bias", hp.width, false);
  return layer;
}

/// llama.cpp's name of `general.file_type`; "" for one we do not know.
std::string quantisation_name(int64_t file_type) {
  switch (file_type) {
    case 0: return "F32";
    case 1: return "F16";
    case 2: return "Q4_0";
    case 3: return "Q4_1";
    case 7: return "Q8_0";
    case 8: return "Q5_0";
    case 9: return "Q5_1";
    case 10: return "Q2_K - Medium";
    case 11: return "Q3_K - Small";
    case 12: return "Q3_K - Medium";
    case 13: return "Q3_K - Large";
    case 14: return "Q4_K - Small";
    case 15: return "Q4_K - Medium";
    case 16: return "Q5_K - Small";
    case 17: return "Q5_K - Medium";
    case 18: return "Q6_K";
    case 21: return "Q2_K - Small";
    case 25: return "IQ4_NL";
    case 26: return "IQ3_S";
    case 27: return "IQ3_S mix";
    case 30: return "IQ4_XS";
    case 32: return "BF16";
    default: return "";
  }
}

}  // namespace

Model read_weights(const GgufFile& file, const Hyperparameters& hp) {
  Tensors tensors(file);
  Model model;
  model.hp = hp;
  model.embedding = tensors.matrix("token_embd.weight", hp.vocab, hp.width);
  model.output_norm = tensors.vector("output_norm.weight", hp.width);
  model.output = tensors.optional_matrix("output.weight", hp.vocab, hp.width);
  if (!model.output) model.output = model.embedding;
  for (int l = 0; l < hp.layers; ++l) {
    if (tensors.has_any(fmt::format("blk.{}.", l))) model.layers.push_back(read_layer(tensors, hp, l));
  }
  tensors.report();
  model.quantisation = quantisation_name(file.integer("general.file_type").value_or(-1));
  model.file_bytes = file.file_bytes();
  model.storage = file.storage();
  return model;
}

}  // namespace tidal
