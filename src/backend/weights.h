// Weights as a backend sees them.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace tidal {

/// A matrix [rows, cols] in a backend's memory: row-major, `cols` elements of `type` contiguous. y = scale * W x has
/// `rows` elements. A vector (norm, bias) is one row of float32. `data` is null for an optional weight that a model
/// lacks.
struct Weight {
  ggml_type type = GGML_TYPE_F32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  float scale = 1.0f;  ///< of products, before a bias is added (the second scale of NVFP4 files)

  explicit operator bool() const { return data != nullptr; }
  size_t row_bytes() const { return ggml_row_size(type, cols); }
  size_t bytes() const { return data ? row_bytes() * static_cast<size_t>(rows) : 0; }
  const std::byte* row(int64_t index) const { return data + static_cast<size_t>(index) * row_bytes(); }
  const float* floats() const { return reinterpret_cast<const float*>(data); }  ///< of a float32 vector
  bool operator==(const Weight&) const = default;
};

/// The weights of a recurrent layer (DeltaNet).
struct DeltaWeights {
  Weight mixed;        // [mixed_width, width]: queries, keys, values
  Weight gate;         // [value_width, width], of the output
  Weight beta, alpha;  // [value_heads, width] twice: how much is written, how much decays
  Weight taps;         // [mixed_width, taps], float32: of the convolution, the last one of the row itself
  Weight alpha_bias;   // [value_heads]
  Weight decay;        // [value_heads]: that many times softplus(alpha) is the logarithm of what is kept, so below 0
  Weight norm;         // [head_dim]
  Weight out;          // [width, value_width]

  explicit operator bool() const { return static_cast<bool>(out); }
  bool operator==(const DeltaWeights&) const = default;
};

/// What Backend::layer_inputs() reads, of a model that has such.
struct LayerInputs {
  Weight embedding;   // [vocab, layers * layer_input]
  Weight projection;  // [layers * layer_input, width]
  Weight norm;        // [layer_input]

  explicit operator bool() const { return static_cast<bool>(embedding); }
  bool operator==(const LayerInputs&) const = default;
};

/// One transformer layer. Biases and the q/k norms are present in some families only. Heads, q_width and kv_width are
/// the layer's own (Hyperparameters::kv()).
struct Layer {
  /// No other layer's in this process, so that two are told apart without a look at their weights, which stay as they
  /// are; 0: none was given (number_layers()).
  uint64_t id = 0;

  Weight attn_norm;             // [width]; optional (olmo2)
  Weight wq, wk, wv;            // [q_width, width], [kv_width, width] twice; without wv the keys' products are the
                                // values', too, without wk the layer reads the K and V of another one
  Weight bq, bk, bv;            // [q_width], [kv_width] twice; optional
  Weight q_norm, k_norm;        // [head_dim] (qwen3), or [q_width] and [kv_width] (olmoe); optional
  Weight key_units;             // [kv_width], powers of two: those of the keys that it reads (key_units_of()); optional
  Weight sink_logits;           // [heads]: a further score of each softmax, of no value; optional (gpt-oss)
  Weight attn_gate;             // [q_width, width], of what attention gives; optional
  Weight wo, bo;                // [width, q_width], [width] optional
  Weight attn_post_norm;        // [width], of what attention gives; optional
  Weight ffn_norm;              // [width]; optional (olmo2)
  Weight gate, up, down;        // [ffn, width] twice, [width, ffn]
  Weight b_gate, b_up, b_down;  // [ffn] twice, [width]; optional
  Weight ffn_post_norm;         // [width], of what the MLP gives; optional

  // In place of gate, up and down where the model is a mixture of experts: their matrices one behind the other.
  Weight router;                               // [experts, width]
  Weight expert_gate, expert_up, expert_down;  // [experts * expert ffn, width] twice, [experts * width, expert ffn];
                                               // without expert_up each one's gate is followed by its up
  Weight gate_scales, up_scales, down_scales;  // [experts], of each one's products; optional (NVFP4)
  Weight router_bias;                          // [experts]; optional, as those of the experts (gpt-oss)
  Weight gate_biases, up_biases, down_biases;  // [experts, expert ffn] twice, [experts, width]
  Weight shared_gate, shared_up, shared_down;  // [shared ffn, width] twice, [width, shared ffn]; optional
  Weight shared_switch;  // [1, width]: the shared expert counts as sigmoid of this product; optional: whole

  // Where experts have norms of their own (Experts::own_norms): of what the router reads, of what the chosen experts
  // read, of what the shared one gives and of what the chosen ones give, [width] each.
  Weight router_norm, expert_norm, shared_post_norm, expert_post_norm;

  Weight input_gate, input_proj, input_norm;  // [layer_input, width], [width, layer_input], [width]; optional
  Weight output_scale;                        // [1], of what the layer leaves; optional

  DeltaWeights delta;  // in place of q, k, v and o where the layer is recurrent

  float query_scale = 1;     // of queries, behind their norm, beside Hyperparameters::temperature()
  bool rotates = true;       // q and k
  bool window_rope = false;  // they rotate by Hyperparameters::window_rope

  bool operator==(const Layer&) const = default;
};

/// The matrix [rows, cols] of one expert in those of all, with its own scale where `scales` has one.
inline Weight expert_matrix(const Weight& all, const Weight& scales, int expert, int64_t rows) {
  Weight own = all;
  own.data = all.row(expert * rows);
  own.rows = rows;
  if (scales) own.scale *= scales.floats()[expert];
  return own;
}

/// Gate and up of one expert, of `ffn` rows each.
inline Weight expert_gate_matrix(const Layer& layer, int expert, int ffn) {
  if (layer.expert_up) return expert_matrix(layer.expert_gate, layer.gate_scales, expert, ffn);
  Weight own = expert_matrix(layer.expert_gate, layer.gate_scales, expert, int64_t{2} * ffn);
  own.rows = ffn;
  return own;
}
inline Weight expert_up_matrix(const Layer& layer, int expert, int ffn) {
  if (layer.expert_up) return expert_matrix(layer.expert_up, layer.up_scales, expert, ffn);
  Weight own = expert_matrix(layer.expert_gate, layer.gate_scales, expert, int64_t{2} * ffn);
  own.data = own.row(ffn);
  own.rows = ffn;
  return own;
}

/// The bias of one expert among those of all, which may be absent.
inline Weight expert_bias(const Weight& all, int expert) {
  Weight own = all;
  if (own) own.data = all.row(expert);
  own.rows = 1;
  return own;
}

}  // namespace tidal
