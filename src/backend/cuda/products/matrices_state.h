// What the products of a pass share: the workspace, and the ways in. Decode rows are in matrices.cpp, the others in
// matrices_prefill.cpp, mixtures of experts in matrices_experts.cpp, recurrent layers and gates in matrices_delta.cpp,
// inputs of layers in matrices_inputs.cpp.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "backend/cuda/experts/grouped_products.h"
#include "backend/cuda/experts/route.h"
#include "backend/cuda/products/elementwise.h"
#include "backend/cuda/products/matmul_lt.h"
#include "backend/cuda/products/matmul_skinny.h"
#include "backend/cuda/products/matrices.h"
#include "core/bf16.h"
#include "core/buffer.h"

namespace tidal::cuda {

inline const __nv_bfloat16* bf16(const Weight& weight) { return reinterpret_cast<const __nv_bfloat16*>(weight.data); }
inline SkinnyMatrix matrix(const Weight& weight) { return {weight.data, weight.type}; }
inline const float* floats(const Weight& weight) { return reinterpret_cast<const float*>(weight.data); }

/// Of an MLP, or of a shared expert.
struct GateUpWeights {
  const Weight &norm, &gate, &up, &b_gate, &b_up;
};

/// Bytes of bf16 that quantised matrices are dequantised to at once.
inline constexpr int64_t kPanel = int64_t{64} << 20;

/// Rows [first, first + count) of a matrix in bf16: [count, cols].
void make_rows(const Weight& weight, int64_t first, int64_t count, Bf16* to, cudaStream_t stream);

struct Matrices::State {
  Hyperparameters hp;
  int max_rows = 0;
  Buffer memory;
  LtMatmul lt;

  double *frequencies = nullptr, *window_frequencies = nullptr;  ///< [dims / 2] of hp.rope, of hp.window_rope
  float2 *angles = nullptr, *window_angles = nullptr;            ///< [rows, dims / 2]
  int32_t *slots = nullptr, *window_slots = nullptr;             ///< [rows], the latter of KvLayer::windowed
  __nv_bfloat16* rounded = nullptr;                              ///< [rows, max(width, q_width)]
  float* factors = nullptr;                                      ///< [rows]
  __nv_bfloat16* normed = nullptr;                               ///< [rows, width]
  float* squares = nullptr;                                      ///< [rows, (width + 15) / 16]
  float* raw = nullptr;              ///< [rows, q_width + 2 kv_width], products before rotation; of layers' inputs
  __nv_bfloat16* gate_up = nullptr;  ///< [rows, 2 ffn]
  __nv_bfloat16* hidden = nullptr;   ///< [rows, ffn]
  std::byte* products = nullptr;     ///< cuBLASLt's own
  Bf16* panel = nullptr;             ///< rows of quantised matrices, dequantised for products; DeltaParams::scratch
  int64_t panel_bytes = 0;           ///< at least kPanel
  std::byte* packed = nullptr;       ///< SkinnyInput::scratch
  float* given = nullptr;            ///< [rows, width], what is to be normed before it is added; where models have that
  float* given_chosen = nullptr;     ///< the same of chosen experts, where they have norms of their own
  float* token_inputs = nullptr;     ///< [rows, layers * layer_input], second embeddings of the rows' tokens

  // Of recurrent layers, DeltaParams'.
  float *mixed = nullptr, *convolved = nullptr;                                  ///< [rows, mixed_width]
  float *delta_gates = nullptr, *delta_out = nullptr;                            ///< [rows, value_width]
  float *beta = nullptr, *alpha = nullptr, *kept = nullptr, *written = nullptr;  ///< [rows, value_heads]
  uint32_t* delta_arrived = nullptr;                                             ///< [rows, key_heads]

  // Of mixtures of experts; a choice is a row and one of its experts.
  float* router_logits = nullptr;          ///< [rows, experts + 1]
  uint32_t* arrived = nullptr;             ///< [rows]
  Choices choices;                         ///< of all rows
  ExpertGroups groups;                     ///< of the rows behind the decode rows
  __nv_bfloat16* chosen_hidden = nullptr;  ///< [rows, used, padded_ffn(ffn)]; grouped [choices, ffn]
  float* chosen_results = nullptr;         ///< [rows, used, width]

  /// What `normed` and `squares` hold: rows of x as the product before left them, with this norm.
  struct Normed {
    const float* x = nullptr;
    const std::byte* norm = nullptr;
    int rows = 0;
    bool operator==(const Normed&) const = default;
  } normed_x;

  bool halves() const { return hp.rope.pairing == Rope::Pairing::Halves; }
  const Rope& rope_of(const Layer& layer) const { return layer.window_rope ? hp.window_rope : hp.rope; }
  const float2* angles_of(const Layer& layer) const { return layer.window_rope ? window_angles : angles; }
  /// Whether the products of q, k and v end in the rotation: not with norms of whole heads, which need all of a head,
  /// nor with a cache of 8 bits, whose scales are of more than a tile.
  bool rotates_inside(const Layer& layer, const KvLayer& kv) const {
    const bool norms = layer.q_norm || layer.k_norm || (layer.wk && (hp.value_norm || !layer.wv));
    return !norms && kv.type == KvType::Bf16 && kv.head_dim % 16 == 0 && rope_of(layer).dims % 16 == 0;
  }

  /// Where the product of a row of x goes: to x, or, to be normed before it is added, elsewhere.
  float* target(const Weight& post_norm, float* x, int first) const {
    return (post_norm ? given : x) + static_cast<int64_t>(first) * hp.width;
  }
  /// Rows [first, first + rows) of x += the norms of what lies in `given`, if there is such a norm; then times `scale`.
  void add_normed(const Weight& post_norm, float* x, int first, int rows, cudaStream_t stream,
                  const Weight& scale = {}) {
    if (!post_norm) return;
    const int64_t at = static_cast<int64_t>(first) * hp.width;
    launch_add_normed({.given = given + at,
                       .norm = floats(post_norm),
                       .scale = floats(scale),
                       .epsilon = hp.rms_epsilon,
                       .rows = rows,
                       .width = hp.width,
                       .x = x + at},
                      stream);
  }
  /// The input of skinny products with `weights` from float32 rows: as it is where these are few, rounded by a launch
  /// of its own otherwise, and packed if all take it so. The first of `weights` is there, others may be absent.
  SkinnyInput input(const float* x, const Weight& norm, const int32_t* row_ids, int rows,
                    std::initializer_list<const Weight*> weights, cudaStream_t stream) {
    const auto there = std::count_if(weights.begin(), weights.end(), [](const Weight* w) { return bool{*w}; });
    const auto quantised =
        std::count_if(weights.begin(), weights.end(), [](const Weight* w) { return *w && w->type != GGML_TYPE_BF16; });
    const auto cols = static_cast<int>((*weights.begin())->cols);
    SkinnyInput in;
    in.scratch = packed;
    const bool taken = (quantised == 0 || skinny_takes_floats(rows, cols, true)) &&
                       (quantised == there || skinny_takes_floats(rows, cols, false));
    if (taken) {
      in.x = x;
      in.norm = floats(norm);
      in.row_ids = row_ids;
      in.epsilon = hp.rms_epsilon;
      return in;
    }
    const bool packs = quantised == there;
    launch_round({.x = x,
                  .row_ids = row_ids,
                  .norm = floats(norm),
                  .epsilon = hp.rms_epsilon,
                  .rows = rows,
                  .cols = cols,
                  .rounded = rounded,
                  .factors = factors,
                  .packed = packs ? packed : nullptr,
                  .squares = squares},
                 stream);
    if (packs) {
      in.packed = packed;
      if (!norm) return in;
      normed_x = {};  // its squares are no more
      in.squares = squares;
      in.epsilon = hp.rms_epsilon;
    } else {
      in.rounded = rounded;
      in.factors = norm ? factors : nullptr;
    }
    return in;
  }
  /// The same of rows of x that the product before has left normed, where it has.
  SkinnyInput normed_input(const float* x, const Weight& norm, int rows, std::initializer_list<const Weight*> weights,
                           cudaStream_t stream) {
    if (normed_x != Normed{x, norm.data, rows}) return input(x, norm, nullptr, rows, weights, stream);
    SkinnyInput in;
    in.scratch = packed;
    in.rounded = normed;
    in.squares = squares;
    in.epsilon = hp.rms_epsilon;
    return in;
  }
  /// Has a product that makes rows of x leave them normed, too. Not without a norm, nor where these are more than one
  /// launch does: all launches of the next product would make the factors again.
  SkinnyNext norm_next(const float* x, const Weight& norm, int rows) {
    normed_x = {};
    if (!norm || rows > kSkinnyRows) return {};
    normed_x = {x, norm.data, rows};
    return {floats(norm), normed, squares};
  }
  /// Rows for cuBLASLt, behind those of decode rows: normed and rounded.
  const __nv_bfloat16* round_whole(const float* x, const Weight& norm, const int32_t* row_ids, PassRows pass, int cols,
                                   cudaStream_t stream) {
    __nv_bfloat16* to = rounded + static_cast<int64_t>(pass.decode_rows) * cols;
    launch_round({.x = x,
                  .row_ids = row_ids,
                  .norm = floats(norm),
                  .epsilon = hp.rms_epsilon,
                  .rows = pass.rows - pass.decode_rows,
                  .cols = cols,
                  .rounded = to,
                  .whole = true},
                 stream);
    return to;
  }

  /// The product of the rows behind the decode rows, each chunk by itself, with matrices whose results lie one behind
  /// the other; `rows`, `w` and `w_rows` of `product` are of no account.
  void multiply(LtProduct product, std::initializer_list<const Weight*> weights, PassRows pass, cudaStream_t stream);
  void multiply_chunks(LtProduct product, PassRows pass, cudaStream_t stream);

  void decode_qkv(const QkvParams& p, cudaStream_t stream);
  void decode_gate_up(const GateUpWeights& weights, const float* x, int rows, cudaStream_t stream);
  void prefill_qkv(const QkvParams& p, cudaStream_t stream);
  void prefill_project(const ProjectParams& p, cudaStream_t stream);
  void prefill_mlp(const MlpParams& p, cudaStream_t stream);
  void prefill_logits(const LogitsParams& p, cudaStream_t stream);
  /// hidden of a dense MLP with these matrices, from the rows behind the decode rows, a factor a row if there are any.
  const __nv_bfloat16* prefill_hidden(const Weight& gate, const Weight& up, const Weight& b_gate, const Weight& b_up,
                                      const float* factors, const __nv_bfloat16* normed, PassRows pass,
                                      cudaStream_t stream);
  void decode_projections(const DeltaWeights& weights, const Weight& norm, const float* x, int rows,
                          cudaStream_t stream);
  void prefill_projections(const DeltaWeights& weights, const Weight& norm, const float* x, PassRows pass,
                           cudaStream_t stream);
  /// y [rows, weight.rows] = weight * x.
  void project_rows(const float* x, const Weight& weight, float* y, PassRows pass, cudaStream_t stream);
  void add_input(const FinishParams& p, cudaStream_t stream);
  void route(const Layer& layer, const float* x, int first, int rows, bool decode, cudaStream_t stream);
  void decode_experts(const MlpParams& p, cudaStream_t stream);
  void prefill_experts(const MlpParams& p, cudaStream_t stream);
  void decode_by_groups(const MlpParams& p, cudaStream_t stream);
  void add_shared(const Layer& layer, float* x, int rows, cudaStream_t stream);
  /// Where the results of chosen experts go: to x, or, to be normed before they are added, elsewhere.
  float* chosen_target(float* x, int first) const {
    return (hp.experts.own_norms ? given_chosen : x) + static_cast<int64_t>(first) * hp.width;
  }
  const Weight& chosen_norm(const Layer& layer) const {
    return hp.experts.own_norms ? layer.expert_norm : layer.ffn_norm;
  }
  /// Rows [first, first + rows) of x += what lies in `given` and `given_chosen`, where experts have norms of their own.
  void add_own_normed(const Layer& layer, float* x, int first, int rows, cudaStream_t stream) const;
  void prefill_chosen(const Layer& layer, const __nv_bfloat16* normed, cudaStream_t stream);
  /// Rotation of raw products of the rows from `first` on.
  RopeAppendParams rope_append(const QkvParams& p, int first, int rows) const;
  int rotated_dims(const Layer& layer) const { return layer.rotates ? rope_of(layer).dims : 0; }
  /// Whether rope_append() gives all queries their factor: one that does not depend on positions.
  bool scales_in_rope(const QkvParams& p) const { return hp.temperature_scale == 0 && !rotates_inside(*p.layer, p.kv); }
  /// Queries of all rows get their temperature, if the model has one and they do not have it yet.
  void scale_queries(const QkvParams& p, cudaStream_t stream) const;
};

}  // namespace tidal::cuda
