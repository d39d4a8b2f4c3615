#include "model/load.h"

#include <fmt/core.h>

#include <cmath>
#include <memory>
#include <utility>

#include "model/family.h"
#include "model/tensors.h"

namespace tidal {
namespace {

/// The q of a layer whose attention is gated: of every head its query, then its gate.
void read_gated_q(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, Layer& layer) {
  const int64_t dim = hp.head_dim;
  const Weight both = tensors.matrix(prefix + "attn_q", 2 * hp.q_width(), hp.width);
  std::vector<Tensors::Stretch> queries, gates;
  for (int h = 0; h < hp.heads; ++h) {
    queries.push_back({2 * dim * h, dim});
    gates.push_back({2 * dim * h + dim, dim});
  }
  layer.wq = tensors.gather(both, 2 * hp.q_width(), queries);
  layer.attn_gate = tensors.gather(both, 2 * hp.q_width(), gates);
  layer.wk = tensors.matrix(prefix + "attn_k", hp.kv_width(), hp.width);
  layer.wv = tensors.matrix(prefix + "attn_v", hp.kv_width(), hp.width);
}

/// Queries, keys, values and gates of the output, each by itself, or (older qwen3next files) one key head's behind the
/// other's.
void read_mixed(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, DeltaWeights& weights) {
  const DeltaNet& net = hp.delta;
  if (!net.neighbours || tensors.has(prefix + "attn_qkv.weight")) {
    weights.mixed = tensors.matrix(prefix + "attn_qkv", net.mixed_width(), hp.width);
    weights.gate = tensors.matrix(prefix + "attn_gate", net.value_width(), hp.width);
    return;
  }
  const int64_t rows = net.mixed_width() + net.value_width(), dim = net.head_dim;
  const int64_t values = dim * (net.value_heads / net.key_heads), step = 2 * (dim + values);
  const Weight all = tensors.matrix(prefix + "ssm_in", rows, hp.width);
  std::vector<Tensors::Stretch> mixed, gates;
  const auto add = [&](std::vector<Tensors::Stretch>& to, int64_t first, int64_t count) {
    for (int g = 0; g < net.key_heads; ++g) to.push_back({g * step + first, count});
  };
  add(mixed, 0, dim);
  add(mixed, dim, dim);
  add(mixed, 2 * dim, values);
  add(gates, 2 * dim + values, values);
  weights.mixed = tensors.gather(all, rows, mixed);
  weights.gate = tensors.gather(all, rows, gates);
}

void read_delta(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, DeltaWeights& weights) {
  const DeltaNet& net = hp.delta;
  const int64_t heads = net.value_heads;
  read_mixed(tensors, hp, prefix, weights);
  if (net.neighbours) {
    const int64_t own = heads / net.key_heads;  // value heads of a key head
    const Weight both = tensors.matrix(prefix + "ssm_ba", 2 * heads, hp.width);
    std::vector<Tensors::Stretch> beta, alpha;
    for (int g = 0; g < net.key_heads; ++g) {
      beta.push_back({2 * own * g, own});
      alpha.push_back({2 * own * g + own, own});
    }
    weights.beta = tensors.gather(both, 2 * heads, beta);
    weights.alpha = tensors.gather(both, 2 * heads, alpha);
  } else {
    weights.beta = tensors.matrix(prefix + "ssm_beta", heads, hp.width);
    weights.alpha = tensors.matrix(prefix + "ssm_alpha", heads, hp.width);
  }
  weights.taps = tensors.vectors(prefix + "ssm_conv1d.weight", net.mixed_width(), net.taps);
  weights.alpha_bias = tensors.vector(prefix + "ssm_dt.bias", heads);
  weights.decay = tensors.vector(prefix + "ssm_a", heads);
  weights.norm = tensors.vector(prefix + "ssm_norm.weight", net.head_dim);
  weights.out = tensors.matrix(prefix + "ssm_out", hp.width, net.value_width());
}

/// Of a layer that reads the K and V of another one: what it has of its own is of no account.
void leave_out_kv(Tensors& tensors, const std::string& prefix, Layer& layer) {
  layer.wk = layer.wv = {};
  for (const char* name : {"attn_k.", "attn_v.", "attn_k_norm."}) tensors.leave_out_all(prefix + name);
}

/// q, k and v, each by itself or one behind the other in attn_qkv.
void read_qkv(Tensors& tensors, const Hyperparameters& hp, int index, const std::string& prefix, Layer& layer) {
  const int64_t q = hp.q_width(index), kv = hp.kv(index).width();
  const bool kinds = family_of(hp).kinds;
  if (tensors.has(prefix + "attn_qkv.weight")) {
    const Weight fused = tensors.matrix(prefix + "attn_qkv", q + 2 * kv, hp.width);
    if (fused.rows == q + 2 * kv) {
      layer.wq = rows_of(fused, 0, q);
      layer.wk = rows_of(fused, q, kv);
      layer.wv = rows_of(fused, q + kv, kv);
    }
  } else {
    layer.wq = tensors.matrix(prefix + "attn_q", q, hp.width);
    if (hp.has_kv(index)) {
      layer.wk = tensors.matrix(prefix + "attn_k", kv, hp.width);
      layer.wv = kinds ? tensors.optional_matrix(prefix + "attn_v", kv, hp.width)
                       : tensors.matrix(prefix + "attn_v", kv, hp.width);
    }
  }
  if (!hp.has_kv(index)) leave_out_kv(tensors, prefix, layer);
  if (kinds) return;
  if (tensors.has(prefix + "attn_qkv.bias")) {
    const Weight fused = tensors.vector(prefix + "attn_qkv.bias", q + 2 * kv);
    if (fused.cols == q + 2 * kv) {
      layer.bq = elements_of(fused, 0, q);
      layer.bk = elements_of(fused, q, kv);
      layer.bv = elements_of(fused, q + kv, kv);
    }
  } else {
    layer.bq = tensors.optional_vector(prefix + "attn_q.bias", q);
    layer.bk = tensors.optional_vector(prefix + "attn_k.bias", kv);
    layer.bv = tensors.optional_vector(prefix + "attn_v.bias", kv);
  }
}

/// Gate and up, each by itself or, as in files without ffn_gate, gate before up in a ffn_up of twice the rows.
void read_gate_up(Tensors& tensors, const Hyperparameters& hp, int index, const std::string& prefix, Layer& layer) {
  const int64_t ffn = hp.ffn_of(index);
  if (!tensors.has(prefix + "ffn_gate.weight") && tensors.rows(prefix + "ffn_up.weight") == 2 * ffn) {
    const Weight fused = tensors.matrix(prefix + "ffn_up", 2 * ffn, hp.width);
    layer.gate = rows_of(fused, 0, ffn);
    layer.up = rows_of(fused, ffn, ffn);
    const Weight bias = tensors.optional_vector(prefix + "ffn_up.bias", 2 * ffn);
    if (bias && bias.cols == 2 * ffn) {
      layer.b_gate = elements_of(bias, 0, ffn);
      layer.b_up = elements_of(bias, ffn, ffn);
    }
    return;
  }
  layer.gate = tensors.matrix(prefix + "ffn_gate", ffn, hp.width);
  layer.up = tensors.matrix(prefix + "ffn_up", ffn, hp.width);
  layer.b_gate = tensors.optional_vector(prefix + "ffn_gate.bias", ffn);
  layer.b_up = tensors.optional_vector(prefix + "ffn_up.bias", ffn);
}

void read_mlp(Tensors& tensors, const Hyperparameters& hp, int index, const std::string& prefix, Layer& layer) {
  read_gate_up(tensors, hp, index, prefix, layer);
  layer.down = tensors.matrix(prefix + "ffn_down", hp.width, hp.ffn_of(index));
  layer.b_down = tensors.optional_vector(prefix + "ffn_down.bias", hp.width);
}

/// The norms of a mixture whose parts have some of their own, and of what the router reads.
void read_expert_norms(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, Layer& layer) {
  layer.router.scale = 1.0f / std::sqrt(static_cast<float>(hp.width));
  layer.router_norm = tensors.vector(prefix + "ffn_gate_inp.scale", hp.width);
  layer.expert_norm = tensors.vector(prefix + "pre_ffw_norm_2.weight", hp.width);
  layer.shared_post_norm = tensors.vector(prefix + "post_ffw_norm_1.weight", hp.width);
  layer.expert_post_norm = tensors.vector(prefix + "post_ffw_norm_2.weight", hp.width);
}

void read_shared_expert(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, Layer& layer) {
  const int64_t ffn = hp.experts.shared_ffn;
  const Family::Shared shared = family_of(hp).shared;
  const char* suffix = shared == Family::Shared::Mlp ? "" : "_shexp";
  layer.shared_gate = tensors.matrix(prefix + "ffn_gate" + suffix, ffn, hp.width);
  layer.shared_up = tensors.matrix(prefix + "ffn_up" + suffix, ffn, hp.width);
  layer.shared_down = tensors.matrix(prefix + "ffn_down" + suffix, hp.width, ffn);
  if (shared == Family::Shared::Switched)
    layer.shared_switch = tensors.table(prefix + "ffn_gate_inp_shexp", 1, hp.width);
}

void read_expert_weights(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, Layer& layer) {
  const Experts& experts = hp.experts;
  const int64_t count = experts.count, ffn = experts.ffn;
  layer.router = tensors.table(prefix + "ffn_gate_inp", count, hp.width);
  const auto matrices = [&](const std::string& name, int64_t rows, int64_t cols, Weight& all, Weight& scales) {
    all = tensors.table(prefix + name, count * rows, cols);
    if (family_of(hp).expert_scales) {
      scales = tensors.optional_vector(prefix + name + ".scale", count);
      tensors.leave_out(prefix + name + ".input_scale");
    }
  };
  if (experts.own_norms) read_expert_norms(tensors, hp, prefix, layer);
  if (experts.own_norms && tensors.has(prefix + "ffn_gate_up_exps.weight")) {
    layer.expert_gate = tensors.table(prefix + "ffn_gate_up_exps", 2 * count * ffn, hp.width);
  } else {
    matrices("ffn_gate_exps", ffn, hp.width, layer.expert_gate, layer.gate_scales);
    matrices("ffn_up_exps", ffn, hp.width, layer.expert_up, layer.up_scales);
  }
  matrices("ffn_down_exps", hp.width, ffn, layer.expert_down, layer.down_scales);
  if (family_of(hp).expert_biases) {
    layer.router_bias = tensors.vector(prefix + "ffn_gate_inp.bias", count);
    layer.gate_biases = tensors.vectors(prefix + "ffn_gate_exps.bias", count, ffn);
    layer.up_biases = tensors.vectors(prefix + "ffn_up_exps.bias", count, ffn);
    layer.down_biases = tensors.vectors(prefix + "ffn_down_exps.bias", count, hp.width);
  }
  if (experts.shared_ffn > 0) read_shared_expert(tensors, hp, prefix, layer);
}

/// What a layer may have at its end: an input of its own, and a scale.
void read_finish(Tensors& tensors, const Hyperparameters& hp, const std::string& prefix, Layer& layer) {
  layer.output_scale = tensors.optional_vector(prefix + "layer_output_scale.weight", 1);
  if (hp.layer_input == 0) return;
  layer.input_gate = tensors.table(prefix + "inp_gate", hp.layer_input, hp.width);
  layer.input_proj = tensors.table(prefix + "proj", hp.width, hp.layer_input);
  layer.input_norm = tensors.vector(prefix + "post_norm.weight", hp.width);
}

/// Factors on scores and on what is added become those of the products that make them.
void fold_scales(const Hyperparameters& hp, Layer& layer) {
  if (hp.attention_scale != 0) layer.wq.scale *= hp.attention_scale * std::sqrt(static_cast<float>(hp.head_dim));
  for (Weight* added : {&layer.wo, &layer.down, &layer.expert_down, &layer.shared_down}) {
    added->scale *= hp.residual_scale;
  }
}

Layer read_layer(Tensors& tensors, const Hyperparameters& hp, int index) {
  const std::string prefix = fmt::format("blk.{}.", index);
  Layer layer;
  const Family& family = family_of(hp);
  const auto norm = [&](const char* name) { return tensors.vector(prefix + name + ".weight", hp.width); };
  set_kind(hp, index, layer);
  if (family.pre_norms) {
    layer.attn_norm = norm("attn_norm");
    layer.ffn_norm = norm(family.ffn_norm);
  }
  if (family.post_norms) {
    layer.attn_post_norm = norm("post_attention_norm");
    layer.ffn_post_norm = norm("post_ffw_norm");
  }
  hp.experts ? read_expert_weights(tensors, hp, prefix, layer) : read_mlp(tensors, hp, index, prefix, layer);
  if (family.kinds) read_finish(tensors, hp, prefix, layer);
  if (hp.recurs(index)) {
    read_delta(tensors, hp, prefix, layer.delta);
    return layer;
  }
  const int q_width = hp.q_width(index);
  const KvShape kv = hp.kv(index);
  hp.gated_attention ? read_gated_q(tensors, hp, prefix, layer) : read_qkv(tensors, hp, index, prefix, layer);
  if (const auto norms = family.norms; norms != Family::Norms::None) {
    const bool heads = norms == Family::Norms::Heads;
    layer.q_norm = tensors.vector(prefix + "attn_q_norm.weight", heads ? kv.head_dim : q_width);
    if (hp.has_kv(index)) {
      layer.k_norm = tensors.vector(prefix + "attn_k_norm.weight", heads ? kv.head_dim : kv.width());
    }
  }
  if (family.sink_logits) layer.sink_logits = tensors.vector(prefix + "attn_sinks.weight", hp.heads);
  layer.wo = tensors.matrix(prefix + "attn_output", hp.width, q_width);
  layer.bo = tensors.optional_vector(prefix + "attn_output.bias", hp.width);
  fold_scales(hp, layer);
  if (family.scales) {  // which a bias would need, too
    for (const char* name : {"attn_qkv.bias", "attn_q.bias", "attn_output.bias", "ffn_down.bias"}) {
      tensors.refuse(prefix + name);
    }
  }
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
  model.embedding = tensors.table("token_embd", hp.vocab, hp.width);
  model.output_norm = tensors.vector("output_norm.weight", hp.width);
  model.output = tensors.optional_matrix("output", hp.vocab, hp.width);
  if (!model.output) model.output = model.embedding;
  model.output.scale /= hp.logit_scale;
  if (hp.layer_input > 0) {
    const int64_t all = int64_t{hp.layers} * hp.layer_input;
    model.layer_inputs = {.embedding = tensors.table("per_layer_token_embd", hp.vocab, all),
                          .projection = tensors.table("per_layer_model_proj", all, hp.width),
                          .norm = tensors.vector("per_layer_proj_norm.weight", hp.layer_input)};
  }
  for (int l = 0; l < hp.layers; ++l) {
    if (tensors.has_any(fmt::format("blk.{}.", l))) model.layers.push_back(read_layer(tensors, hp, l));
  }
  // They are in hp.rope. libllama refuses Gemma 4 files without, unless all layers have windows.
  if (family_of(hp).kinds && !hp.layers_that_read_all().empty()) tensors.vector("rope_freqs.weight", hp.rope.dims / 2);
  if (family_of(hp).rope_factors) tensors.leave_out("rope_freqs.weight");
  if (family_of(hp).long_rope) {  // so are these, one of them
    tensors.leave_out("rope_factors_long.weight");
    tensors.leave_out("rope_factors_short.weight");
  }
  if (family_of(hp).hybrid) {  // what follows predicts further tokens
    const int64_t all = file.integer(hp.architecture + ".block_count").value_or(hp.layers);
    for (int64_t l = hp.layers; l < all; ++l) tensors.leave_out_all(fmt::format("blk.{}.", l));
  }
  if (family_of(hp).reranker) tensors.leave_out("cls.output.weight");
  tensors.report();
  model.quantisation = quantisation_name(file.integer("general.file_type").value_or(-1));
  model.file_bytes = file.file_bytes();
  model.storage = std::make_shared<std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>>(
      file.storage(), tensors.copies());
  return model;
}

}  // namespace tidal
