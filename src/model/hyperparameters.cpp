#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "model/family.h"
#include "model/hybrid.h"
#include "model/keys.h"
#include "model/layer_kinds.h"
#include "model/load.h"
#include "model/rope.h"

namespace tidal {
namespace {

constexpr int kMostLayers = 1 << 12;

RopeScaling read_scaling(const GgufFile& file, Keys& keys, const Family& family, int context) {
  RopeScaling scaling;
  // As llama.cpp: a factor without a type means linear, and the old key stands in for the new one.
  const std::string type = keys.text("rope.scaling.type").value_or("linear");
  const double old_factor = keys.positive_or("rope.scale_linear", 1);
  scaling.factor = keys.positive_or("rope.scaling.factor", old_factor);
  if (type == "linear" || (type == "longrope" && family.long_rope)) {
    scaling.kind = scaling.factor == 1 ? RopeScaling::Kind::None : RopeScaling::Kind::Linear;
  } else if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::Yarn;
  } else if (type != "none") {
    fail("{}: rope scaling '{}' is not supported, expected none, linear{} yarn", file.path(), type,
         family.long_rope ? ", longrope or" : " or");
  }
  scaling.original_context = keys.size_or("rope.scaling.original_context_length", context);
  // As llama.cpp: of other families it takes the paper's numbers whatever the file says, and of these, too, those of
  // yarn_ext_factor and yarn_attn_factor.
  if (family.yarn_keys) {
    scaling.beta_fast = keys.positive_or("rope.scaling.yarn_beta_fast", scaling.beta_fast);
    scaling.beta_slow = keys.positive_or("rope.scaling.yarn_beta_slow", scaling.beta_slow);
    scaling.log_multiplier = keys.number_or("rope.scaling.yarn_log_multiplier", 0);
  }
  scaling.attention = keys.positive_or("rope.scaling.attn_factor", 1);
  return scaling;
}

/// Whether pairs are dealt to the axes of pictures (M-RoPE), whose files keep halves. In text all axes but the last say
/// the same, so that nothing else changes; throws where a pair goes by the last.
bool read_sections(const GgufFile& file, const std::string& architecture, int dims) {
  const auto sections = file.integers(architecture + ".rope.dimension_sections");
  if (!sections || sections->size() < 3 || (*sections)[0] <= 0 || (*sections)[1] <= 0) return false;
  const int64_t axes = (*sections)[0] + (*sections)[1] + (*sections)[2];
  if (axes < dims / 2 || (sections->size() > 3 && (*sections)[3] != 0)) {
    fail("{}: key '{}.rope.dimension_sections' gives {} pairs of {} to the first three axes, others are not supported",
         file.path(), architecture, axes, dims / 2);
  }
  return true;
}

/// Factors per pair, Llama 3's or LongRoPE's; empty when the file has none.
std::span<const float> read_divisors(const GgufFile& file, const std::string& name, int dims) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) return {};
  const Weight& weight = found->second;
  if (weight.type != GGML_TYPE_F32 || weight.rows != 1 || weight.cols != dims / 2) {
    fail("{}: tensor '{}' is {} [{}, {}], expected f32 [{}]", file.path(), name, ggml_type_name(weight.type),
         weight.rows, weight.cols, dims / 2);
  }
  const std::span<const float> divisors(weight.floats(), static_cast<size_t>(dims / 2));
  for (const float divisor : divisors) {
    if (!(divisor > 0) || !std::isfinite(divisor)) {
      fail("{}: tensor '{}' holds {}, expected positive numbers", file.path(), name, divisor);
    }
  }
  return divisors;
}

/// The windows of all layers; none where the keys give none. As libllama: a list says which layers have it, a number is
/// has_window()'s.
std::vector<int> read_windows(const GgufFile& file, Keys& keys, const Family& family, int layers) {
  // libllama refuses some files without, and with 0 their layers see nothing.
  const bool needed = family.kinds || family.architecture == "gpt-oss";
  const int window = needed                    ? keys.size("attention.sliding_window")
                     : family.usual_window > 0 ? keys.size_or("attention.sliding_window", family.usual_window)
                                               : keys.nonzero_or("attention.sliding_window", 0);
  if (window == 0) return {};
  const std::string key = std::string(family.architecture) + ".attention.sliding_window_pattern";
  const auto values = file.integers(key);
  const bool list = values && file.is_array(key);
  if (family.kinds && !list) keys.require("attention.sliding_window_pattern");
  if (list && static_cast<int64_t>(values->size()) != layers) {
    fail("{}: key '{}' has {} values, expected one for each of {} layers", file.path(), key, values->size(), layers);
  }
  const int64_t pattern = values && !list ? values->front() : family.window_pattern;
  std::vector<int> windows;
  for (int l = 0; l < layers; ++l) {
    const bool has = list ? (*values)[static_cast<size_t>(l)] != 0 : has_window(l, pattern);
    windows.push_back(has ? window : 0);
  }
  if (std::all_of(windows.begin(), windows.end(), [](int own) { return own == 0; })) return {};
  return windows;
}

/// `where`: which layers.
void check_rotated(const GgufFile& file, int dims, int head_dim, std::string_view where = "") {
  if (dims % 2 != 0 || dims > head_dim) {
    fail("{}: rope rotates {} elements{}, expected an even number up to the head size {}", file.path(), dims, where,
         head_dim);
  }
}

double read_base(const GgufFile& file, Keys& keys, const char* key, double otherwise) {
  const double base = keys.number_or(key, otherwise);
  if (base <= 1) fail("{}: the rope base is {}, expected a number above 1", file.path(), base);
  return base;
}

Rope read_window_rope(const GgufFile& file, Keys& keys, const Family& family, int dims, double base,
                      const RopeScaling& scaling) {
  switch (family.window_rope) {
    case Family::WindowRope::Unscaled: return make_rope(family.pairing, dims, base, {}, {});
    case Family::WindowRope::OwnScaled:
      return make_rope(family.pairing, dims, read_base(file, keys, "rope.freq_base_swa", base), {}, scaling);
    case Family::WindowRope::OwnUnscaled: {
      // As libllama, which keeps the factor on the magnitude.
      const RopeScaling own{.attention = scaling.attention};
      return make_rope(family.pairing, dims, read_base(file, keys, "rope.freq_base_swa", 10000.0), {}, own);
    }
  }
  return {};
}

bool is_finite(const Rope& rope) {
  return std::isfinite(rope.magnitude) &&
         std::all_of(rope.frequencies.begin(), rope.frequencies.end(),
                     [](double frequency) { return std::isfinite(static_cast<float>(frequency)); });
}

Experts read_experts(const GgufFile& file, Keys& keys, const Family& family, int layers, int ffn) {
  constexpr int kMost = 1024;  // as in libllama
  const bool has = keys.integer_or("expert_count", 0) != 0;
  if (family.mlp == Family::Mlp::Dense && has) {
    fail("{}: a mixture of experts of architecture '{}' is not supported", file.path(), family.architecture);
  }
  if (family.mlp != Family::Mlp::Experts && !has) return {};
  Experts experts;
  experts.count = keys.size("expert_count");
  experts.used = keys.uniform("expert_used_count", 0, layers);
  if (experts.used == 0) keys.require("expert_used_count");
  if (experts.count > kMost) fail("{}: {} experts, expected at most {}", file.path(), experts.count, kMost);
  if (experts.count > 0 && experts.used > experts.count) {
    fail("{}: a token goes through {} of {} experts", file.path(), experts.used, experts.count);
  }
  if (const int64_t groups = keys.integer_or("expert_group_count", 1); groups > 1) {
    fail("{}: experts in {} groups are not supported", file.path(), groups);
  }
  // As libllama: qwen files have a length of their own for experts, or share out the MLP's; others have one or the
  // MLP's.
  const bool qwen = family.architecture.starts_with("qwen");
  const bool own = qwen || family.kinds || family.architecture == "gpt-oss";
  const int share = qwen && experts.used > 0 ? ffn / experts.used : own ? 0 : ffn;
  experts.ffn = own ? keys.uniform("expert_feed_forward_length", share, layers) : share;
  if (experts.ffn == 0) keys.require(own ? "expert_feed_forward_length" : "feed_forward_length");
  if (family.shared == Family::Shared::AsKeysSay) {
    experts.shared_ffn = keys.nonzero_or("expert_shared_feed_forward_length", 0);
  } else if (family.shared == Family::Shared::Switched) {
    experts.shared_ffn = keys.nonzero_or("expert_shared_feed_forward_length", ffn);
    if (experts.shared_ffn == 0) keys.require("expert_shared_feed_forward_length");
  }
  if (family.shared == Family::Shared::Mlp) experts.shared_ffn = ffn;
  experts.weights_sum_to_one = family.weights_sum_to_one;
  experts.own_norms = family.expert_norms;
  return experts;
}

/// libllama reads what belongs to each token without another look.
void check_vocabulary(const GgufFile& file, int64_t tokens) {
  if (tokens < 1 || tokens > (1 << 24)) fail("{}: the vocabulary has {} tokens", file.path(), tokens);
  for (const char* key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    const auto count = file.array_size(key);
    if (count && *count != tokens) {
      fail("{}: key '{}' has {} values, expected one for each of {} tokens", file.path(), key, *count, tokens);
    }
  }
}

void check_heads(const GgufFile& file, const Hyperparameters& hp) {
  // Everything the engine multiplies these with stays inside 32 bits.
  if (hp.width > (1 << 20) || hp.heads > (1 << 12) || hp.layers > kMostLayers) {
    fail("{}: {} layers, width {} and {} heads are beyond any known model", file.path(), hp.layers, hp.width, hp.heads);
  }
  for (const KvShape& kv : {KvShape{hp.kv_heads, hp.head_dim}, hp.window_kv}) {
    if (kv && hp.heads % kv.heads != 0) {
      fail("{}: {} attention heads cannot share {} KV heads evenly", file.path(), hp.heads, kv.heads);
    }
    if (kv.head_dim % 16 != 0 || kv.head_dim > kMostHeadDim) {
      fail("{}: the head size is {}, expected a multiple of 16 up to {}", file.path(), kv.head_dim, kMostHeadDim);
    }
  }
}

/// As libllama, which tells the largest Gemma 2 and 3 by their depth: their scores go by a head of width / heads
/// elements (in integers).
float query_scale_by_width(const GgufFile& file, const Hyperparameters& hp) {
  if (hp.width < hp.heads) fail("{}: {} heads are more than the width {}", file.path(), hp.heads, hp.width);
  const int own = hp.width / hp.heads;
  return std::sqrt(static_cast<float>(hp.head_dim) / static_cast<float>(own));
}

/// Where a cap is optional 0 stands for none.
float read_cap(const GgufFile& file, Keys& keys, const char* key, float usual, bool optional) {
  constexpr double kLeast = 1e-3, kMost = 1e9;
  const double cap = keys.number_or(key, usual);
  if (!(optional && cap == 0) && (cap < kLeast || cap > kMost)) {
    fail("{}: key '{}' is {}, expected {:g} to {:g}{}", file.path(), key, cap, kLeast, kMost,
         optional ? ", or 0 for no cap" : "");
  }
  return static_cast<float>(cap);
}

void read_caps(const GgufFile& file, Keys& keys, const Family& family, Hyperparameters& hp) {
  const bool both = family.usual_score_cap > 0;
  if (family.logit_cap) {
    hp.logit_cap = read_cap(file, keys, "final_logit_softcapping", family.usual_logit_cap, !both);
  }
  if (both) hp.score_cap = read_cap(file, keys, "attn_logit_softcapping", family.usual_score_cap, false);
}

void read_scales(Keys& keys, Hyperparameters& hp) {
  // As in libllama 0 stands for none.
  const auto factor = [&](const char* key, double none) {
    const double value = keys.number_or(key, 0);
    return static_cast<float>(value == 0 ? none : value);
  };
  hp.logit_scale = static_cast<float>(keys.number("logit_scale"));
  hp.residual_scale = factor("residual_scale", 1);
  hp.embedding_scale = factor("embedding_scale", 1);
  hp.attention_scale = factor("attention.scale", 0);
}

}  // namespace

Hyperparameters read_hyperparameters(const GgufFile& file) {
  const auto architecture = file.text("general.architecture");
  if (!architecture) fail("{}: key 'general.architecture' is missing", file.path());
  const Family* const family = find_family(*architecture);
  if (!family) {
    fail("{}: architecture '{}' is not supported, expected {}", file.path(), *architecture, family_names());
  }
  Keys keys(file, *architecture);
  Hyperparameters hp;
  hp.architecture = *architecture;
  hp.name = file.text("general.name").value_or("");
  // libllama leaves out the last layers of a file that says so: they predict further tokens.
  const int all_layers = keys.size("block_count");
  if (all_layers > kMostLayers) {
    fail("{}: {} layers are beyond any known model", file.path(), all_layers);
  }
  const int64_t further = keys.integer_or("nextn_predict_layers", 0);
  if (further > 0 && !family->hybrid) fail("{}: NextN layers are not supported", file.path());
  if (further > 0 && further >= all_layers) {
    fail("{}: {} NextN layers of {}, expected fewer", file.path(), further, all_layers);
  }
  hp.layers = all_layers - static_cast<int>(further);
  hp.width = keys.size("embedding_length");
  hp.ffn = family->kinds ? read_ffns(keys, all_layers, hp) : keys.uniform("feed_forward_length", 0, all_layers);
  hp.experts = read_experts(file, keys, *family, all_layers, hp.ffn);
  if (hp.ffn == 0 && (!hp.experts || family->shared == Family::Shared::Mlp)) keys.require("feed_forward_length");
  hp.heads = keys.uniform("attention.head_count", 0, all_layers);
  if (hp.heads == 0) keys.require("attention.head_count");
  if (!family->kinds) hp.kv_heads = keys.uniform("attention.head_count_kv", hp.heads, all_layers);
  hp.context = keys.size("context_length");
  hp.rms_epsilon = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon"));
  if (family->window_pattern > 0) hp.windows = read_windows(file, keys, *family, hp.layers);
  if (family->kinds) require_kinds(file, keys, hp);
  hp.activation = family->activation;
  hp.value_norm = family->value_norm;
  hp.sink_logits = family->sink_logits;
  hp.post_norms = family->post_norms;
  hp.unrotated_every = family->unrotated_every;
  if (family->scales) read_scales(keys, hp);
  if (family->rotation_key && !file.flag(*architecture + ".rope.scaling.finetuned").value_or(true)) {
    hp.unrotated_every = 1;
  }
  const auto vocab = file.array_size("tokenizer.ggml.tokens");
  if (!vocab) keys.require_whole("tokenizer.ggml.tokens");
  keys.report_missing();
  if (family->kinds) read_kinds(file, keys, hp);

  if (hp.logit_scale == 0) fail("{}: key '{}.logit_scale' is 0", file.path(), *architecture);
  check_vocabulary(file, *vocab);
  hp.vocab = static_cast<int>(*vocab);
  if (hp.width % hp.heads != 0 && !file.integer(*architecture + ".attention.key_length")) {
    fail("{}: the width {} cannot be divided by {} heads", file.path(), hp.width, hp.heads);
  }
  hp.head_dim = keys.size_or("attention.key_length", std::max(1, hp.width / hp.heads));
  if (keys.size_or("attention.value_length", hp.head_dim) != hp.head_dim) {
    fail("{}: keys and values of different head sizes are not supported", file.path());
  }
  check_heads(file, hp);
  read_delta(file, keys, *family, all_layers, hp);
  read_caps(file, keys, *family, hp);
  if (family->embedding_root) hp.embedding_scale = std::sqrt(static_cast<float>(hp.width));
  if (hp.layers == family->by_width_at) hp.query_scale = query_scale_by_width(file, hp);
  if (!(hp.rms_epsilon > 0) || hp.rms_epsilon > 1) {
    fail("{}: the RMS epsilon is {}, expected a number above 0 and at most 1", file.path(), hp.rms_epsilon);
  }

  const int dims = keys.size_or("rope.dimension_count", hp.head_dim);
  check_rotated(file, dims, hp.head_dim);
  const double base = read_base(file, keys, "rope.freq_base", 10000.0);
  const RopeScaling scaling = read_scaling(file, keys, *family, hp.context);
  // Of other families load.cpp refuses them.
  std::span<const float> divisors;
  if (family->rope_factors) divisors = read_divisors(file, "rope_freqs.weight", dims);
  if (family->long_rope) {
    // libllama goes by the context that it is asked for; weights are here once for all contexts, so by the longest.
    const bool longer = hp.context > scaling.original_context;
    divisors = read_divisors(file, longer ? "rope_factors_long.weight" : "rope_factors_short.weight", dims);
  }
  if (family->temperature) {
    hp.temperature_scale = static_cast<float>(keys.number_or("attention.temperature_scale", 0));
    hp.temperature_length = scaling.original_context;
  }
  if (!hp.windows.empty()) {
    const int window_dims = family->kinds ? keys.size_or("rope.dimension_count_swa", dims) : dims;
    check_rotated(file, window_dims, hp.window_kv ? hp.window_kv.head_dim : hp.head_dim, " in layers with a window");
    hp.window_rope = read_window_rope(file, keys, *family, window_dims, base, scaling);
  }
  if (family->mixed_sections) check_mixed_sections(file, *architecture, dims);
  const bool sections = family->rope_sections && read_sections(file, *architecture, dims);
  hp.rope = make_rope(sections ? Rope::Pairing::Halves : family->pairing, dims, base, divisors, scaling);
  if (!is_finite(hp.rope) || !is_finite(hp.window_rope)) {
    fail("{}: the rope base, scaling and factors give frequencies that are not finite numbers", file.path());
  }
  return hp;
}

}  // namespace tidal
