#include "backend/cuda/products/matrices.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "backend/cuda/delta/delta.h"
#include "backend/cuda/experts/chosen_products.h"
#include "backend/cuda/products/matrices_state.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/weights/quantised.h"
#include "backend/key_units.h"

namespace tidal::cuda {
namespace {

/// The parts of the workspace for passes of up to `rows` rows, in bytes.
struct Sizes {
  int64_t frequencies, window_frequencies, angles, window_angles, slots, window_slots, rounded, factors, normed,
      squares, raw, gate_up, hidden, products, panel, packed;
  int64_t router_logits, arrived, shared, choice, expert, chosen_hidden, chosen_results, given, given_chosen,
      token_inputs;
  int64_t mixed, delta_values, delta_heads, delta_arrived;

  Sizes(const Hyperparameters& hp, int64_t rows)
      : Sizes(hp, rows, std::max(hp.experts ? hp.experts.shared_ffn : hp.ffn, hp.layer_input)) {}
  int64_t total() const {
    return frequencies + window_frequencies + angles + window_angles + slots + window_slots + rounded + factors +
           normed + squares + raw + gate_up + hidden + products + panel + packed + router_logits + arrived + shared +
           kChoices * choice + kExpertLists * expert + chosen_hidden + chosen_results + given + given_chosen +
           token_inputs + 2 * (mixed + delta_values) + 4 * delta_heads + delta_arrived;
  }
  static constexpr int kChoices = 5, kExpertLists = 3;  // lists of numbers, one a choice, and one an expert

 private:
  Sizes(const Hyperparameters& hp, int64_t rows, int64_t ffn)
      : frequencies(part(hp.rope.dims / 2 * sizeof(double))),
        window_frequencies(part(hp.window_rope.dims / 2 * sizeof(double))),
        angles(part(rows * (hp.rope.dims / 2) * sizeof(float2))),
        window_angles(part(rows * (hp.window_rope.dims / 2) * sizeof(float2))),
        slots(part(rows * sizeof(int32_t))),
        window_slots(hp.windows.empty() ? 0 : part(rows * sizeof(int32_t))),
        rounded(part(rows * widest(hp) * 2)),
        factors(part(rows * sizeof(float))),
        normed(part(rows * hp.width * 2)),
        squares(part(rows * ((hp.width + 15) / 16) * sizeof(float))),
        raw(part(rows * std::max(hp.q_width() + 2 * hp.kv_width(), hp.layer_input) * sizeof(float))),
        gate_up(part(rows * 2 * ffn * 2)),
        hidden(part(rows * ffn * 2)),
        products(LtMatmul::kWorkspace),
        panel(std::max(kPanel, delta_scratch_bytes(hp.delta))),
        packed(part(std::max(skinny_packed_bytes(static_cast<int>(rows), widest(hp)),
                             skinny_packed_bytes(kQuantisedRows, static_cast<int>(ffn))))),
        router_logits(part(rows * (hp.experts.count + 1) * sizeof(float))),
        arrived(part(rows * sizeof(uint32_t))),
        shared(part(rows * sizeof(float))),
        choice(part(rows * hp.experts.used * sizeof(int32_t))),
        expert(part((hp.experts.count + 1) * sizeof(int32_t))),
        chosen_hidden(part(rows * hp.experts.used * padded_ffn(hp.experts.ffn) * 2)),
        chosen_results(part(rows * hp.experts.used * hp.width * sizeof(float))),
        given(hp.post_norms || hp.experts.own_norms || hp.layer_input > 0 ? part(rows * hp.width * sizeof(float)) : 0),
        given_chosen(hp.experts.own_norms ? part(rows * hp.width * sizeof(float)) : 0),
        token_inputs(part(rows * hp.layers * hp.layer_input * sizeof(float))),
        mixed(part(rows * hp.delta.mixed_width() * sizeof(float))),
        delta_values(part(rows * hp.delta.value_width() * sizeof(float))),
        delta_heads(part(rows * hp.delta.value_heads * sizeof(float))),
        delta_arrived(part(rows * hp.delta.key_heads * sizeof(uint32_t))) {
    if (!hp.experts) router_logits = arrived = shared = choice = expert = 0;
  }
  static int widest(const Hyperparameters& hp) { return std::max({hp.width, hp.q_width(), hp.delta.value_width()}); }
  static int64_t part(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

}  // namespace

Matrices::Matrices() : state_(std::make_unique<State>()) {}
Matrices::~Matrices() = default;

int64_t Matrices::workspace_bytes(const Hyperparameters& hp, int max_rows) { return Sizes(hp, max_rows).total(); }

void Matrices::reserve(const Hyperparameters& hp, int max_rows) {
  State& s = *state_;
  check(cudaDeviceSynchronize(), "making room for a pass");
  s.hp = hp;
  s.max_rows = max_rows;
  const Sizes sizes(hp, max_rows);
  if (static_cast<int64_t>(s.memory.bytes()) < sizes.total()) {
    s.memory = {};  // first, so that both need not fit
    s.memory = allocate_device(static_cast<size_t>(sizes.total()), "activations of a pass");
  }
  std::byte* at = s.memory.as<std::byte>();
  const auto place = [&](auto*& pointer, int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
    at += bytes;
  };
  place(s.frequencies, sizes.frequencies);
  place(s.window_frequencies, sizes.window_frequencies);
  place(s.angles, sizes.angles);
  place(s.window_angles, sizes.window_angles);
  place(s.slots, sizes.slots);
  place(s.window_slots, sizes.window_slots);
  place(s.rounded, sizes.rounded);
  place(s.factors, sizes.factors);
  place(s.normed, sizes.normed);
  place(s.squares, sizes.squares);
  place(s.raw, sizes.raw);
  place(s.gate_up, sizes.gate_up);
  place(s.hidden, sizes.hidden);
  place(s.products, sizes.products);
  place(s.panel, sizes.panel);
  s.panel_bytes = sizes.panel;
  place(s.packed, sizes.packed);
  place(s.router_logits, sizes.router_logits);
  place(s.arrived, sizes.arrived);
  place(s.choices.shared, sizes.shared);
  place(s.choices.experts, sizes.choice);
  place(s.choices.weights, sizes.choice);
  place(s.groups.row, sizes.choice);
  place(s.groups.weight, sizes.choice);
  place(s.groups.place, sizes.choice);
  place(s.groups.first, sizes.expert);
  place(s.groups.tile, sizes.expert);
  place(s.groups.wide, sizes.expert);
  place(s.chosen_hidden, sizes.chosen_hidden);
  place(s.chosen_results, sizes.chosen_results);
  place(s.given, sizes.given);
  place(s.given_chosen, sizes.given_chosen);
  place(s.token_inputs, sizes.token_inputs);
  for (float** one : {&s.mixed, &s.convolved}) place(*one, sizes.mixed);
  for (float** one : {&s.delta_gates, &s.delta_out}) place(*one, sizes.delta_values);
  for (float** one : {&s.beta, &s.alpha, &s.kept, &s.written}) place(*one, sizes.delta_heads);
  place(s.delta_arrived, sizes.delta_arrived);
  // Where another model's numbers may have been.
  check(cudaMemset(s.arrived, 0, static_cast<size_t>(sizes.arrived)), "activations of a pass");
  check(cudaMemset(s.delta_arrived, 0, static_cast<size_t>(sizes.delta_arrived)), "activations of a pass");
  const auto send = [](const std::vector<double>& frequencies, double* to) {
    check(cudaMemcpy(to, frequencies.data(), frequencies.size() * sizeof(double), cudaMemcpyHostToDevice),
          "rotation frequencies");
  };
  send(hp.rope.frequencies, s.frequencies);
  send(hp.window_rope.frequencies, s.window_frequencies);
  check(cudaDeviceSynchronize(), "rotation frequencies");  // streams of passes wait for nothing
}

void Matrices::begin(const StepTables& tables, const StepTables& window_tables, int rows, cudaStream_t stream) {
  State& s = *state_;
  s.normed_x = {};
  const AnglesParams whole{.tables = tables,
                           .frequencies = s.frequencies,
                           .magnitude = s.hp.rope.magnitude,
                           .rows = rows,
                           .pairs = s.hp.rope.dims / 2,
                           .angles = s.angles,
                           .slots = s.slots};
  launch_angles(whole, stream);
  const bool windowed = !(window_tables == tables), own_rope = s.hp.window_rope.dims > 0;
  if (!windowed && !own_rope) return;
  AnglesParams windows = whole;
  windows.tables = window_tables;
  if (windowed) windows.slots = s.window_slots;
  windows.pairs = 0;  // slots alone
  if (own_rope) {
    windows.frequencies = s.window_frequencies;
    windows.magnitude = s.hp.window_rope.magnitude;
    windows.pairs = s.hp.window_rope.dims / 2;
    windows.angles = s.window_angles;
  }
  launch_angles(windows, stream);
}

void Matrices::embed(const EmbedParams& p, cudaStream_t stream) {
  state_->normed_x = {};
  const float scale = state_->hp.embedding_scale;
  if (p.embedding.type != GGML_TYPE_BF16) {
    launch_dequantise_tokens({p.embedding.type, p.embedding.data, p.tables.tokens, p.rows, p.embedding.cols, p.x},
                             stream);
  } else {
    launch_embed(bf16(p.embedding), p.tables.tokens, p.rows, static_cast<int>(p.embedding.cols), p.x, stream);
  }
  if (scale != 1) launch_scale(p.x, p.rows * p.embedding.cols, scale, stream);
}

RopeAppendParams Matrices::State::rope_append(const QkvParams& p, int first, int rows) const {
  const Layer& layer = *p.layer;
  return {.bias = {floats(layer.bq), floats(layer.bk), floats(layer.bv)},
          .q_norm = floats(layer.q_norm),
          .k_norm = floats(layer.k_norm),
          .norms_rows = layer.q_norm && layer.q_norm.cols > p.kv.head_dim,
          .norms_values = hp.value_norm,
          .epsilon = hp.rms_epsilon,
          .angles = angles_of(layer) + static_cast<int64_t>(first) * (rope_of(layer).dims / 2),
          .slots = (p.kv.windowed ? window_slots : slots) + first,
          .q = p.q + first * layer.wq.rows,
          .kv = p.kv.data,
          .type = p.kv.type,
          .row_bytes = p.kv.row_bytes(),
          .rows = rows,
          .heads = hp.heads,
          .kv_heads = layer.wk ? p.kv.kv_heads : 0,
          .head_dim = p.kv.head_dim,
          .dims = rotated_dims(layer),
          .halves = halves(),
          .query_scale = scales_in_rope(p) ? hp.query_scale * layer.query_scale : 1.0f,
          .key_units = key_units_of(layer, p.kv),
          .group = hp.heads / p.kv.kv_heads};
}

void Matrices::State::scale_queries(const QkvParams& p, cudaStream_t stream) const {
  const float factor = hp.query_scale * p.layer->query_scale;
  if (scales_in_rope(p) || (factor == 1 && hp.temperature_scale == 0)) return;
  launch_temperature({.positions = p.tables.positions,
                      .query_scale = factor,
                      .scale = hp.temperature_scale,
                      .length = hp.temperature_length,
                      .rows = p.pass.rows,
                      .width = static_cast<int>(p.layer->wq.rows),
                      .q = p.q},
                     stream);
}

void Matrices::State::decode_qkv(const QkvParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int rows = p.pass.decode_rows, q_width = hp.heads * p.kv.head_dim, kv_width = p.kv.kv_heads * p.kv.head_dim;
  const bool inside = rotates_inside(layer, p.kv);
  SkinnyQkv product;
  product.in = normed_input(p.x, layer.attn_norm, rows, {&layer.wq, &layer.wk, &layer.wv}, stream);
  const Weight* weights[] = {&layer.wq, &layer.wk, &layer.wv};
  const Weight* biases[] = {&layer.bq, &layer.bk, &layer.bv};
  for (int i = 0; i < 3; ++i) {
    product.w[i] = matrix(*weights[i]);
    if (inside) product.bias[i] = floats(*biases[i]);  // else rope_append() adds them
  }
  RopeAppendParams rope = rope_append(p, 0, rows);
  product.k_raw = raw;
  product.v_raw = raw + static_cast<int64_t>(rows) * kv_width;
  // Where a head's norm is that of its row, others must not have written theirs.
  product.q = rope.norms_rows ? raw + static_cast<int64_t>(2 * rows) * kv_width : p.q;
  product.rows = rows;
  product.cols = hp.width;
  product.q_width = q_width;
  product.kv_width = kv_width;
  product.fused = inside;
  product.rope = {.angles = angles_of(layer),
                  .slots = rope.slots,
                  .kv = reinterpret_cast<__nv_bfloat16*>(p.kv.data),
                  .kv_heads = p.kv.kv_heads,
                  .head_dim = p.kv.head_dim,
                  .dims = rotated_dims(layer),
                  .halves = halves()};
  launch_skinny_qkv(product, stream);
  if (inside) return;
  rope.q_raw = product.q;
  rope.k_raw = product.k_raw;
  rope.v_raw = layer.wv ? product.v_raw : product.k_raw;
  rope.q_stride = q_width;
  rope.kv_stride = kv_width;
  launch_rope_append(rope, stream);
}

void Matrices::qkv(const QkvParams& p, cudaStream_t stream) {
  if (p.pass.decode_rows > 0) state_->decode_qkv(p, stream);
  if (p.pass.rows > p.pass.decode_rows) state_->prefill_qkv(p, stream);
  state_->scale_queries(p, stream);
}

void Matrices::project(const ProjectParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const int width = s.hp.width, q_width = static_cast<int>(layer.wo.cols), first = p.pass.decode_rows;
  if (first > 0) {
    SkinnyRows product;
    product.in = s.input(p.out, {}, nullptr, first, {&layer.wo}, stream);
    product.w = matrix(layer.wo);
    product.bias = floats(layer.bo);
    product.y = s.target(layer.attn_post_norm, p.x, 0);
    product.rows = first;
    product.cols = q_width;
    product.w_rows = width;
    product.add = !layer.attn_post_norm;
    product.next = s.norm_next(p.x, product.add ? layer.ffn_norm : Weight{}, first);
    launch_skinny_rows(product, stream);
    s.add_normed(layer.attn_post_norm, p.x, 0, first, stream);
  }
  if (p.pass.rows > first) s.prefill_project(p, stream);
}

void Matrices::State::decode_gate_up(const GateUpWeights& w, const float* x, int rows, cudaStream_t stream) {
  const auto ffn = static_cast<int>(w.gate.rows);
  const SkinnyInput in = normed_input(x, w.norm, rows, {&w.gate, &w.up}, stream);
  if (w.gate.type == w.up.type) {
    SkinnyGateUp both;
    both.in = in;
    both.activation = hp.activation;
    both.gate = matrix(w.gate);
    both.up = matrix(w.up);
    both.gate_bias = floats(w.b_gate);
    both.up_bias = floats(w.b_up);
    both.hidden = hidden;
    both.rows = rows;
    both.cols = hp.width;
    both.ffn = ffn;
    launch_skinny_gate_up(both, stream);
    return;
  }
  SkinnyRows gate;
  gate.in = in;
  gate.w = matrix(w.gate);
  gate.bias = floats(w.b_gate);
  gate.y = reinterpret_cast<float*>(gate_up);  // [rows, ffn] of float32 take as much
  gate.rows = rows;
  gate.cols = hp.width;
  gate.w_rows = ffn;
  SkinnyRows up = gate;
  up.w = matrix(w.up);
  up.bias = floats(w.b_up);
  up.hidden = hidden;
  up.activation = hp.activation;
  launch_skinny_rows(gate, stream);
  launch_skinny_rows(up, stream);
}

void Matrices::mlp(const MlpParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const int rows = p.pass.decode_rows;
  if (rows > 0) {
    s.decode_gate_up({layer.ffn_norm, layer.gate, layer.up, layer.b_gate, layer.b_up}, p.x, rows, stream);
    SkinnyRows down;
    down.in.rounded = s.hidden;
    down.in.scratch = s.packed;
    down.w = matrix(layer.down);
    down.bias = floats(layer.b_down);
    down.y = s.target(layer.ffn_post_norm, p.x, 0);
    down.rows = rows;
    down.cols = static_cast<int>(layer.down.cols);
    down.w_rows = s.hp.width;
    down.add = !layer.ffn_post_norm;
    down.next = s.norm_next(p.x, p.next && down.add ? p.next->attn_norm : Weight{}, rows);
    launch_skinny_rows(down, stream);
    s.add_normed(layer.ffn_post_norm, p.x, 0, rows, stream);
  }
  if (p.pass.rows > rows) s.prefill_mlp(p, stream);
}

void Matrices::logits(const LogitsParams& p, cudaStream_t stream) {
  State& s = *state_;
  const int first = p.pass.decode_rows, width = s.hp.width;
  if (first > 0) {
    SkinnyRows product;
    product.in = s.input(p.x, p.norm, p.logit_rows, first, {&p.output}, stream);
    product.w = matrix(p.output);
    product.y = p.logits;
    product.rows = first;
    product.cols = width;
    product.w_rows = static_cast<int>(p.output.rows);
    launch_skinny_rows(product, stream);
  }
  if (p.pass.rows > first) s.prefill_logits(p, stream);
  if (p.output.scale != 1) launch_scale(p.logits, p.pass.rows * p.output.rows, p.output.scale, stream);
  if (s.hp.logit_cap != 0) launch_cap(p.logits, p.pass.rows * p.output.rows, s.hp.logit_cap, stream);
}

}  // namespace tidal::cuda
