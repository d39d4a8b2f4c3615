#include "backend/cuda/products/matrices_state.h"

namespace tidal::cuda {
namespace {

/// Whether matrices lie one behind the other, so that one product does both.
bool joined(const Weight& first, const Weight& second) { return first.data + first.bytes() == second.data; }

}  // namespace

void Matrices::State::multiply(LtProduct product, PassRows pass, cudaStream_t stream) {
  for (const int rows : pass.long_chunks) {
    product.rows = rows;
    lt.multiply(product, products, stream);
    product.x += static_cast<int64_t>(rows) * product.cols;
    product.y = static_cast<std::byte*>(product.y) +
                static_cast<int64_t>(rows) * product.stride * (product.rounded ? sizeof(__nv_bfloat16) : sizeof(float));
  }
}

void Matrices::State::prefill_qkv(const QkvParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  const int q_width = hp.q_width(), kv_width = hp.kv_width(), all = q_width + 2 * kv_width;
  const __nv_bfloat16* x =
      round_whole(p.x + static_cast<int64_t>(first) * hp.width, layer.attn_norm, nullptr, p.pass, hp.width, stream);
  float* to = raw + static_cast<int64_t>(first) * all;
  LtProduct product{.x = x, .w = bf16(layer.wq), .y = to, .cols = hp.width, .stride = all};
  if (joined(layer.wq, layer.wk) && joined(layer.wk, layer.wv)) {
    product.w_rows = all;
    multiply(product, p.pass, stream);
  } else {
    const Weight* weights[] = {&layer.wq, &layer.wk, &layer.wv};
    float* at = to;
    for (const Weight* weight : weights) {
      product.w = bf16(*weight);
      product.w_rows = static_cast<int>(weight->rows);
      product.y = at;
      multiply(product, p.pass, stream);
      at += weight->rows;
    }
  }
  RopeAppendParams rope = rope_append(p, first, rows);
  rope.q_raw = to;
  rope.k_raw = to + q_width;
  rope.v_raw = to + q_width + kv_width;
  rope.q_stride = rope.kv_stride = all;
  launch_rope_append(rope, stream);
}

void Matrices::State::prefill_project(const ProjectParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, width = hp.width, q_width = hp.q_width();
  const int rows = p.pass.rows - first;
  float* x = p.x + static_cast<int64_t>(first) * width;
  const __nv_bfloat16* out =
      round_whole(p.out + static_cast<int64_t>(first) * q_width, {}, nullptr, p.pass, q_width, stream);
  multiply({.x = out, .w = bf16(layer.wo), .y = x, .cols = q_width, .w_rows = width, .stride = width, .add = true},
           p.pass, stream);
  if (layer.bo) launch_add_bias(x, floats(layer.bo), rows, width, stream);
}

void Matrices::State::prefill_mlp(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first, ffn = hp.ffn;
  float* x = p.x + static_cast<int64_t>(first) * hp.width;
  const __nv_bfloat16* normed = round_whole(x, layer.ffn_norm, nullptr, p.pass, hp.width, stream);
  __nv_bfloat16* both = gate_up + static_cast<int64_t>(first) * 2 * ffn;
  __nv_bfloat16* silu = hidden + static_cast<int64_t>(first) * ffn;
  LtProduct product{.x = normed,
                    .w = bf16(layer.gate),
                    .y = both,
                    .cols = hp.width,
                    .w_rows = ffn,
                    .stride = 2 * ffn,
                    .rounded = true};
  if (joined(layer.gate, layer.up)) {
    product.w_rows = 2 * ffn;
    multiply(product, p.pass, stream);
  } else {
    multiply(product, p.pass, stream);
    product.w = bf16(layer.up);
    product.y = both + ffn;
    multiply(product, p.pass, stream);
  }
  launch_silu({.gate = both,
               .up = both + ffn,
               .gate_bias = floats(layer.b_gate),
               .up_bias = floats(layer.b_up),
               .hidden = silu,
               .rows = rows,
               .ffn = ffn,
               .stride = 2 * ffn},
              stream);
  multiply({.x = silu, .w = bf16(layer.down), .y = x, .cols = ffn, .w_rows = hp.width, .stride = hp.width, .add = true},
           p.pass, stream);
  if (layer.b_down) launch_add_bias(x, floats(layer.b_down), rows, hp.width, stream);
}

void Matrices::State::prefill_logits(const LogitsParams& p, cudaStream_t stream) {
  const int first = p.pass.decode_rows, width = hp.width, vocab = static_cast<int>(p.output.rows);
  const __nv_bfloat16* x = round_whole(p.x, p.norm, p.logit_rows + first, p.pass, width, stream);
  multiply({.x = x,
            .w = bf16(p.output),
            .y = p.logits + static_cast<int64_t>(first) * vocab,
            .cols = width,
            .w_rows = vocab,
            .stride = vocab},
           p.pass, stream);
}

}  // namespace tidal::cuda
