// Mixtures of experts: the router chooses for every row; the products of decode rows read what each row chose, those of
// the others what many rows chose.
#include <algorithm>

#include "backend/cuda/experts/chosen_products.h"
#include "backend/cuda/products/matrices_state.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/weights/quantised.h"

namespace tidal::cuda {

void Matrices::State::route(const Layer& layer, const float* x, int first, int rows, bool decode, cudaStream_t stream) {
  const Experts& experts = hp.experts;
  if (layer.router.type != GGML_TYPE_F32 || (layer.shared_switch && layer.shared_switch.type != GGML_TYPE_F32)) {
    fail_with("cuda backend: a router was not uploaded as float32");
  }
  const auto at = [&](int each) { return static_cast<int64_t>(first) * each; };
  const RouteParams params{
      .x = x + at(hp.width),
      .norm = floats(layer.router_norm ? layer.router_norm : layer.ffn_norm),
      .epsilon = hp.rms_epsilon,
      .router = floats(layer.router),
      .bias = floats(layer.router_bias),
      .shared_switch = floats(layer.shared_switch),
      .rows = rows,
      .width = hp.width,
      .experts = experts,
      .few = rows <= kSkinnyRows,
      .logits = router_logits + at(experts.count + 1),
      .arrived = arrived + first,
      .choices = {choices.experts + at(experts.used), choices.weights + at(experts.used), choices.shared + first}};
  if (decode) return launch_route(params, stream);
  launch_route_chunks(params, stream);
}

/// The shared expert of decode rows.
void Matrices::State::add_shared(const Layer& layer, float* x, int rows, cudaStream_t stream) {
  decode_gate_up({layer.ffn_norm, layer.shared_gate, layer.shared_up, {}, {}}, x, rows, stream);
  SkinnyRows down;
  down.in.rounded = hidden;
  down.in.factors = layer.shared_switch ? choices.shared : nullptr;
  down.in.scratch = packed;
  down.w = matrix(layer.shared_down);
  down.y = hp.experts.own_norms ? given : x;
  down.rows = rows;
  down.cols = hp.experts.shared_ffn;
  down.w_rows = hp.width;
  down.add = !hp.experts.own_norms;
  launch_skinny_rows(down, stream);
}

void Matrices::State::add_own_normed(const Layer& layer, float* x, int first, int rows, cudaStream_t stream) const {
  if (!hp.experts.own_norms) return;
  const int64_t at = static_cast<int64_t>(first) * hp.width;
  launch_add_experts({.shared = given + at,
                      .chosen = given_chosen + at,
                      .shared_norm = floats(layer.shared_post_norm),
                      .chosen_norm = floats(layer.expert_post_norm),
                      .norm = floats(layer.ffn_post_norm),
                      .epsilon = hp.rms_epsilon,
                      .rows = rows,
                      .width = hp.width,
                      .x = x + at},
                     stream);
}

/// Decode rows by the products of longer chunks, which give each row the same whoever comes with it.
void Matrices::State::decode_by_groups(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int rows = p.pass.decode_rows;
  launch_round({.x = p.x,
                .norm = floats(chosen_norm(layer)),
                .epsilon = hp.rms_epsilon,
                .rows = rows,
                .cols = hp.width,
                .rounded = rounded,
                .whole = true},
               stream);
  launch_group({choices.experts, choices.weights}, rows, hp.experts, groups, stream);
  prefill_chosen(layer, rounded, stream);
  if (layer.shared_down) add_shared(layer, p.x, rows, stream);
  launch_combine(chosen_results, groups.place, rows, hp.experts.used, hp.width, chosen_target(p.x, 0),
                 !hp.experts.own_norms, stream);
  normed_x = {};
}

namespace {

/// Gate and up of all experts: matrices of their own, or each one's gate followed by its up.
struct GateUpMatrices {
  Weight gate, up;  ///< [ffn, width] of the first expert and so on
  int expert_rows;  ///< from an expert's to the next one's

  GateUpMatrices(const Layer& layer, int ffn)
      : gate(layer.expert_gate), up(layer.expert_up), expert_rows(layer.expert_up ? ffn : 2 * ffn) {
    if (up) return;
    up = gate;
    up.data += gate.type == GGML_TYPE_BF16 ? ffn * static_cast<int64_t>(gate.row_bytes())
                                           : tiled_bytes(gate.type, ffn, gate.cols);
  }
};

}  // namespace

void Matrices::State::decode_experts(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const Experts& experts = hp.experts;
  const int rows = p.pass.decode_rows;
  route(layer, p.x, 0, rows, true, stream);
  const GateUpMatrices matrices(layer, experts.ffn);
  const Weight& norm = chosen_norm(layer);
  if (matrices.gate.type != matrices.up.type) {
    decode_by_groups(p, stream);
    return add_own_normed(layer, p.x, 0, rows, stream);
  }
  ChosenGateUp both;
  if (normed_x == Normed{p.x, norm.data, rows}) {
    both.in.rounded = normed;
    both.in.squares = squares;
  } else {
    both.in.x = p.x;
    both.in.norm = floats(norm);
  }
  both.in.epsilon = hp.rms_epsilon;
  both.gate = matrix(matrices.gate);
  both.up = matrix(matrices.up);
  both.expert_rows = matrices.expert_rows;
  both.gate_scales = floats(layer.gate_scales);
  both.up_scales = floats(layer.up_scales);
  both.down_scales = floats(layer.down_scales);
  both.gate_biases = floats(layer.gate_biases);
  both.up_biases = floats(layer.up_biases);
  both.activation = hp.activation;
  both.choices = choices;
  both.hidden = chosen_hidden;
  both.rows = rows;
  both.cols = hp.width;
  both.ffn = experts.ffn;
  both.used = experts.used;
  launch_chosen(both, stream);
  const Weight next = p.next && !experts.own_norms ? p.next->attn_norm : Weight{};
  if (layer.shared_down) add_shared(layer, p.x, rows, stream);
  ChosenDown down;
  down.in.rounded = chosen_hidden;
  down.w = matrix(layer.expert_down);
  down.y = chosen_target(p.x, 0);
  down.rows = rows;
  down.cols = experts.used * padded_ffn(experts.ffn);
  down.w_rows = hp.width;
  down.add = !experts.own_norms;
  down.next = norm_next(p.x, next, rows);
  down.choices = choices;
  down.biases = floats(layer.down_biases);
  down.ffn = experts.ffn;
  down.used = experts.used;
  launch_chosen(down, stream);
  add_own_normed(layer, p.x, 0, rows, stream);
}

void Matrices::State::prefill_chosen(const Layer& layer, const __nv_bfloat16* normed, cudaStream_t stream) {
  const Experts& experts = hp.experts;
  /// Calls body(panel) for all experts' matrices [rows, cols] of one or two weights, `apart` rows from one to the next.
  const auto for_panels = [&](const Weight& w, const Weight* up, int rows, int apart, int cols, auto&& body) {
    if (w.type == GGML_TYPE_BF16 && (!up || up->type == GGML_TYPE_BF16)) {
      return body(ExpertPanel{0, experts.count, bf16(w), up ? bf16(*up) : nullptr, 0, rows, apart});
    }
    // As many whole experts as fit, or rows of one; 64 rows of gate and up make a tile.
    const int64_t most = kPanel / 2 / cols / (up ? 2 : 1), part = std::max<int64_t>(64, most / 64 * 64);
    const int together = static_cast<int>(std::clamp<int64_t>(most / rows, 1, experts.count));
    const int64_t each = most >= rows ? rows : std::min<int64_t>(rows, part);
    for (int first = 0; first < experts.count; first += together) {
      const int count = std::min(together, experts.count - first);
      for (int64_t begin = 0; begin < rows; begin += each) {
        const int64_t own = std::min<int64_t>(each, rows - begin), all = count * own;
        Bf16* to = panel;
        for (const Weight* weight : {&w, up}) {
          if (!weight) continue;
          // Of whole neighbours all rows follow each other.
          const int64_t at_once = apart == rows ? all : own;
          for (int64_t done = 0; done < all; done += at_once) {
            make_rows(*weight, (first + done / own) * apart + begin, at_once, to, stream);
            to += at_once * cols;
          }
        }
        const auto* from = reinterpret_cast<const __nv_bfloat16*>(panel);
        body(ExpertPanel{first, count, from, up ? from + all * cols : nullptr, static_cast<int>(begin),
                         static_cast<int>(own), static_cast<int>(own)});
      }
    }
  };
  const GateUpMatrices matrices(layer, experts.ffn);
  const GroupedGateUp both{.activation = hp.activation,
                           .groups = groups,
                           .panel = {0, experts.count, nullptr, nullptr, 0, experts.ffn},
                           .tiles = {matrices.gate.type, matrices.gate.data, matrices.up.data, matrices.expert_rows},
                           .gate_scales = floats(layer.gate_scales),
                           .up_scales = floats(layer.up_scales),
                           .down_scales = floats(layer.down_scales),
                           .gate_biases = floats(layer.gate_biases),
                           .up_biases = floats(layer.up_biases),
                           .x = normed,
                           .hidden = chosen_hidden,
                           .cols = hp.width,
                           .stride = experts.ffn};
  if (both.tiles.type == matrices.up.type && groups_tiles(both.tiles.type, experts.ffn)) {
    launch_grouped_tiles(both, stream);
  } else {
    for_panels(matrices.gate, &matrices.up, experts.ffn, matrices.expert_rows, hp.width, [&](const ExpertPanel& one) {
      GroupedGateUp own = both;
      own.panel = one;
      launch_grouped(own, stream);
    });
  }
  const GroupedDown down{.groups = groups,
                         .panel = {0, experts.count, nullptr, nullptr, 0, hp.width},
                         .tiles = {layer.expert_down.type, layer.expert_down.data, nullptr, hp.width},
                         .biases = floats(layer.down_biases),
                         .hidden = chosen_hidden,
                         .results = chosen_results,
                         .cols = experts.ffn,
                         .stride = hp.width};
  if (groups_tiles(down.tiles.type, hp.width)) return launch_grouped_tiles(down, stream);
  for_panels(layer.expert_down, nullptr, hp.width, hp.width, experts.ffn, [&](const ExpertPanel& one) {
    GroupedDown own = down;
    own.panel = one;
    launch_grouped(own, stream);
  });
}

void Matrices::State::prefill_experts(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const Experts& experts = hp.experts;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  float* x = p.x + static_cast<int64_t>(first) * hp.width;
  route(layer, p.x, first, rows, false, stream);
  const auto normed_by = [&](const Weight& norm) { return round_whole(x, norm, nullptr, p.pass, hp.width, stream); };
  const __nv_bfloat16* normed = normed_by(chosen_norm(layer));
  const int64_t choice = static_cast<int64_t>(first) * experts.used;
  launch_group({choices.experts + choice, choices.weights + choice}, rows, experts, groups, stream);
  prefill_chosen(layer, normed, stream);
  if (layer.shared_down) {
    if (experts.own_norms) normed = normed_by(layer.ffn_norm);
    float* const to = experts.own_norms ? given + static_cast<int64_t>(first) * hp.width : x;
    const float* factors = layer.shared_switch ? choices.shared + first : nullptr;
    const __nv_bfloat16* shared =
        prefill_hidden(layer.shared_gate, layer.shared_up, {}, {}, factors, normed, p.pass, stream);
    multiply({.x = shared, .y = to, .cols = experts.shared_ffn, .stride = hp.width, .add = !experts.own_norms},
             {&layer.shared_down}, p.pass, stream);
  }
  launch_combine(chosen_results, groups.place, rows, experts.used, hp.width, chosen_target(p.x, first),
                 !experts.own_norms, stream);
  add_own_normed(layer, p.x, first, rows, stream);
}

void Matrices::experts(const MlpParams& p, cudaStream_t stream) {
  if (p.pass.decode_rows > 0) state_->decode_experts(p, stream);
  if (p.pass.rows > p.pass.decode_rows) state_->prefill_experts(p, stream);
}

}  // namespace tidal::cuda
