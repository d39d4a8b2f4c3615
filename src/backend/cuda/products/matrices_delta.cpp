// Recurrent layers: their projections, what lies between them (delta/delta.h), and the gate of attention.
#include "backend/cuda/delta/delta.h"
#include "backend/cuda/products/matrices_state.h"

namespace tidal::cuda {

void Matrices::State::decode_projections(const DeltaWeights& w, const Weight& norm, const float* x, int rows,
                                         cudaStream_t stream) {
  SkinnyQkv product;
  product.in = normed_input(x, norm, rows, {&w.mixed, &w.beta, &w.alpha}, stream);
  const Weight* weights[] = {&w.mixed, &w.beta, &w.alpha};
  for (int i = 0; i < 3; ++i) product.w[i] = matrix(*weights[i]);
  product.q = mixed;
  product.k_raw = beta;
  product.v_raw = alpha;
  product.rows = rows;
  product.cols = hp.width;
  product.q_width = hp.delta.mixed_width();
  product.kv_width = hp.delta.value_heads;
  launch_skinny_qkv(product, stream);
  SkinnyRows gate;
  gate.in = normed_input(x, norm, rows, {&w.gate}, stream);
  gate.w = matrix(w.gate);
  gate.y = delta_gates;
  gate.rows = rows;
  gate.cols = hp.width;
  gate.w_rows = hp.delta.value_width();
  launch_skinny_rows(gate, stream);
}

void Matrices::State::prefill_projections(const DeltaWeights& w, const Weight& norm, const float* x, PassRows pass,
                                          cudaStream_t stream) {
  const int64_t first = pass.decode_rows;
  const __nv_bfloat16* normed = round_whole(x + first * hp.width, norm, nullptr, pass, hp.width, stream);
  const auto project = [&](const Weight& weight, float* to) {
    const auto rows = static_cast<int>(weight.rows);
    multiply({.x = normed, .y = to + first * rows, .cols = hp.width, .stride = rows}, {&weight}, pass, stream);
  };
  project(w.mixed, mixed);
  project(w.gate, delta_gates);
  project(w.beta, beta);
  project(w.alpha, alpha);
}

void Matrices::delta(const DeltaLayerParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const DeltaWeights& w = layer.delta;
  const DeltaNet& net = s.hp.delta;
  const int first = p.pass.decode_rows, width = s.hp.width, values = net.value_width();
  if (first > 0) s.decode_projections(w, layer.attn_norm, p.x, first, stream);
  if (p.pass.rows > first) s.prefill_projections(w, layer.attn_norm, p.x, p.pass, stream);
  launch_delta({.tables = p.tables,
                .net = net,
                .rows = p.pass.rows,
                .decode_rows = first,
                .decode_chunks = p.chunks - static_cast<int>(p.pass.long_chunks.size()),
                .long_chunks = p.pass.long_chunks,
                .state = p.index * net.state_elements(),
                .epsilon = s.hp.rms_epsilon,
                .taps = floats(w.taps),
                .alpha_bias = floats(w.alpha_bias),
                .decay = floats(w.decay),
                .norm = floats(w.norm),
                .mixed = s.mixed,
                .gates = s.delta_gates,
                .beta = s.beta,
                .alpha = s.alpha,
                .convolved = s.convolved,
                .kept = s.kept,
                .written = s.written,
                .arrived = s.delta_arrived,
                .scratch = reinterpret_cast<float*>(s.panel),
                .scratch_bytes = s.panel_bytes,
                .out = s.delta_out},
               stream);
  if (first > 0) {
    SkinnyRows product;
    product.in = s.input(s.delta_out, {}, nullptr, first, {&w.out}, stream);
    product.w = matrix(w.out);
    product.y = p.x;
    product.rows = first;
    product.cols = values;
    product.w_rows = width;
    product.add = true;
    product.next = s.norm_next(p.x, layer.ffn_norm, first);
    launch_skinny_rows(product, stream);
  }
  if (p.pass.rows > first) {
    const __nv_bfloat16* out =
        s.round_whole(s.delta_out + static_cast<int64_t>(first) * values, {}, nullptr, p.pass, values, stream);
    s.multiply({.x = out, .y = p.x + static_cast<int64_t>(first) * width, .cols = values, .stride = width, .add = true},
               {&w.out}, p.pass, stream);
  }
}

void Matrices::gate(const GateParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, q_width = s.hp.q_width();
  if (first > 0) {
    SkinnyRows product;
    product.in = s.normed_input(p.x, layer.attn_norm, first, {&layer.attn_gate}, stream);
    product.w = matrix(layer.attn_gate);
    product.y = s.raw;
    product.rows = first;
    product.cols = s.hp.width;
    product.w_rows = q_width;
    launch_skinny_rows(product, stream);
  }
  if (p.pass.rows > first) {
    const __nv_bfloat16* normed = s.round_whole(p.x + static_cast<int64_t>(first) * s.hp.width, layer.attn_norm,
                                                nullptr, p.pass, s.hp.width, stream);
    s.multiply({.x = normed, .y = s.raw + static_cast<int64_t>(first) * q_width, .cols = s.hp.width, .stride = q_width},
               {&layer.attn_gate}, p.pass, stream);
  }
  launch_gate(s.raw, p.out, static_cast<int64_t>(p.pass.rows) * q_width, stream);
}

}  // namespace tidal::cuda
