#include <algorithm>

#include "backend/cuda/products/matrices_state.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/weights/quantised.h"

namespace tidal::cuda {
namespace {

bool all_bf16(std::initializer_list<const Weight*> weights) {
  return std::all_of(weights.begin(), weights.end(), [](const Weight* w) { return w->type == GGML_TYPE_BF16; });
}
/// Whether matrices of bf16 lie one behind the other, so that one product does all.
bool joined(std::initializer_list<const Weight*> weights) {
  return std::adjacent_find(weights.begin(), weights.end(), [](const Weight* a, const Weight* b) {
           return a->data + a->bytes() != b->data;
         }) == weights.end();
}

/// Rows [first, first + count) of the matrices, counted through, in bf16.
void make_panel(std::initializer_list<const Weight*> weights, int64_t first, int64_t count, Bf16* to,
                cudaStream_t stream) {
  for (const Weight* weight : weights) {
    const int64_t begin = std::max<int64_t>(first, 0), rows = std::min(first + count, weight->rows) - begin;
    first -= weight->rows;
    if (rows <= 0) continue;
    make_rows(*weight, begin, rows, to, stream);
    to += rows * weight->cols;
  }
}

}  // namespace

void make_rows(const Weight& weight, int64_t first, int64_t count, Bf16* to, cudaStream_t stream) {
  if (weight.type == GGML_TYPE_BF16) {
    check(cudaMemcpyAsync(to, weight.row(first), static_cast<size_t>(count) * weight.row_bytes(),
                          cudaMemcpyDeviceToDevice, stream),
          "a panel of weights");
  } else {
    launch_dequantise_rows({weight.type, weight.data, first, count, weight.cols, to}, stream);
  }
}

void Matrices::State::multiply_chunks(LtProduct product, PassRows pass, cudaStream_t stream) {
  for (const int rows : pass.long_chunks) {
    product.rows = rows;
    lt.multiply(product, products, stream);
    product.x += static_cast<int64_t>(rows) * product.cols;
    product.y = static_cast<std::byte*>(product.y) +
                static_cast<int64_t>(rows) * product.stride * (product.rounded ? sizeof(__nv_bfloat16) : sizeof(float));
  }
}

void Matrices::State::multiply(LtProduct product, std::initializer_list<const Weight*> weights, PassRows pass,
                               cudaStream_t stream) {
  const auto step = [&](int64_t rows) {
    auto* y = static_cast<std::byte*>(product.y);
    product.y = y + rows * static_cast<int64_t>(product.rounded ? sizeof(__nv_bfloat16) : sizeof(float));
  };
  int64_t total = 0;
  for (const Weight* weight : weights) total += weight->rows;
  if (!all_bf16(weights)) {
    // Where panels end depends on the matrices alone, so that a chunk's results do not depend on its company.
    const int64_t most = std::max<int64_t>(256, kPanel / 2 / product.cols / 256 * 256);
    const int64_t panels = (total + most - 1) / most, each = (total + panels * 256 - 1) / (panels * 256) * 256;
    product.w = reinterpret_cast<const __nv_bfloat16*>(panel);
    for (int64_t first = 0; first < total; first += each) {
      const int64_t rows = std::min(each, total - first);
      make_panel(weights, first, rows, panel, stream);
      product.w_rows = static_cast<int>(rows);
      multiply_chunks(product, pass, stream);
      step(rows);
    }
  } else if (joined(weights)) {
    product.w = bf16(**weights.begin());
    product.w_rows = static_cast<int>(total);
    multiply_chunks(product, pass, stream);
  } else {
    for (const Weight* weight : weights) {
      product.w = bf16(*weight);
      product.w_rows = static_cast<int>(weight->rows);
      multiply_chunks(product, pass, stream);
      step(weight->rows);
    }
  }
}

void Matrices::State::prefill_qkv(const QkvParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  const int q_width = hp.heads * p.kv.head_dim, kv_width = p.kv.kv_heads * p.kv.head_dim;
  const int all = q_width + (layer.wk ? kv_width : 0) + (layer.wv ? kv_width : 0);
  const __nv_bfloat16* x =
      round_whole(p.x + static_cast<int64_t>(first) * hp.width, layer.attn_norm, nullptr, p.pass, hp.width, stream);
  float* to = raw + static_cast<int64_t>(first) * all;
  const LtProduct product{.x = x, .y = to, .cols = hp.width, .stride = all};
  if (!layer.wk) {
    multiply(product, {&layer.wq}, p.pass, stream);
  } else if (!layer.wv) {
    multiply(product, {&layer.wq, &layer.wk}, p.pass, stream);
  } else {
    multiply(product, {&layer.wq, &layer.wk, &layer.wv}, p.pass, stream);
  }
  RopeAppendParams rope = rope_append(p, first, rows);
  rope.q_raw = to;
  rope.k_raw = to + q_width;
  rope.v_raw = layer.wv ? rope.k_raw + kv_width : rope.k_raw;
  rope.q_stride = rope.kv_stride = all;
  launch_rope_append(rope, stream);
}

void Matrices::State::prefill_project(const ProjectParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, width = hp.width, q_width = static_cast<int>(layer.wo.cols);
  const int rows = p.pass.rows - first;
  const __nv_bfloat16* out =
      round_whole(p.out + static_cast<int64_t>(first) * q_width, {}, nullptr, p.pass, q_width, stream);
  float* to = target(layer.attn_post_norm, p.x, first);
  multiply({.x = out, .y = to, .cols = q_width, .stride = width, .add = !layer.attn_post_norm}, {&layer.wo}, p.pass,
           stream);
  if (layer.bo) launch_add_bias(to, floats(layer.bo), rows, width, stream);
  add_normed(layer.attn_post_norm, p.x, first, rows, stream);
}

const __nv_bfloat16* Matrices::State::prefill_hidden(const Weight& gate, const Weight& up, const Weight& b_gate,
                                                     const Weight& b_up, const float* factors,
                                                     const __nv_bfloat16* normed, PassRows pass, cudaStream_t stream) {
  const auto ffn = static_cast<int>(gate.rows);
  const int first = pass.decode_rows;
  __nv_bfloat16* both = gate_up + static_cast<int64_t>(first) * 2 * ffn;
  __nv_bfloat16* to = hidden + static_cast<int64_t>(first) * ffn;
  multiply({.x = normed, .y = both, .cols = hp.width, .stride = 2 * ffn, .rounded = true}, {&gate, &up}, pass, stream);
  launch_hidden({.activation = hp.activation,
                 .gate = both,
                 .up = both + ffn,
                 .gate_bias = floats(b_gate),
                 .up_bias = floats(b_up),
                 .factors = factors,
                 .hidden = to,
                 .rows = pass.rows - first,
                 .ffn = ffn,
                 .stride = 2 * ffn},
                stream);
  return to;
}

void Matrices::State::prefill_mlp(const MlpParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int first = p.pass.decode_rows, rows = p.pass.rows - first;
  float* x = p.x + static_cast<int64_t>(first) * hp.width;
  const __nv_bfloat16* normed = round_whole(x, layer.ffn_norm, nullptr, p.pass, hp.width, stream);
  const __nv_bfloat16* activated =
      prefill_hidden(layer.gate, layer.up, layer.b_gate, layer.b_up, nullptr, normed, p.pass, stream);
  float* to = target(layer.ffn_post_norm, p.x, first);
  const auto ffn = static_cast<int>(layer.down.cols);
  multiply({.x = activated, .y = to, .cols = ffn, .stride = hp.width, .add = !layer.ffn_post_norm}, {&layer.down},
           p.pass, stream);
  if (layer.b_down) launch_add_bias(to, floats(layer.b_down), rows, hp.width, stream);
  add_normed(layer.ffn_post_norm, p.x, first, rows, stream);
}

void Matrices::State::prefill_logits(const LogitsParams& p, cudaStream_t stream) {
  const int first = p.pass.decode_rows, width = hp.width, vocab = static_cast<int>(p.output.rows);
  const __nv_bfloat16* x = round_whole(p.x, p.norm, p.logit_rows + first, p.pass, width, stream);
  multiply({.x = x, .y = p.logits + static_cast<int64_t>(first) * vocab, .cols = width, .stride = vocab}, {&p.output},
           p.pass, stream);
}

}  // namespace tidal::cuda
