// What layers get beside x: inputs of their own, and a factor on what they leave.
#include "backend/cuda/products/matrices_state.h"
#include "backend/cuda/weights/quantised.h"

namespace tidal::cuda {

void Matrices::State::project_rows(const float* x, const Weight& weight, float* y, PassRows pass, cudaStream_t stream) {
  const auto rows = static_cast<int>(weight.rows), cols = static_cast<int>(weight.cols);
  const int64_t first = pass.decode_rows;
  if (first > 0) {
    SkinnyRows product;
    product.in = input(x, {}, nullptr, pass.decode_rows, {&weight}, stream);
    product.w = matrix(weight);
    product.y = y;
    product.rows = pass.decode_rows;
    product.cols = cols;
    product.w_rows = rows;
    launch_skinny_rows(product, stream);
  }
  if (pass.rows > first) {
    const __nv_bfloat16* rounded_x = round_whole(x + first * cols, {}, nullptr, pass, cols, stream);
    multiply({.x = rounded_x, .y = y + first * rows, .cols = cols, .stride = rows}, {&weight}, pass, stream);
  }
}

void Matrices::layer_inputs(const LayerInputsOfRows& p, cudaStream_t stream) {
  State& s = *state_;
  const Weight& embedding = p.weights.embedding;
  const int rows = p.pass.rows;
  s.project_rows(p.x, p.weights.projection, p.inputs, p.pass, stream);
  if (embedding.type != GGML_TYPE_BF16) {
    launch_dequantise_tokens({embedding.type, embedding.data, p.tables.tokens, rows, embedding.cols, s.token_inputs},
                             stream);
  } else {
    launch_embed(bf16(embedding), p.tables.tokens, rows, static_cast<int>(embedding.cols), s.token_inputs, stream);
  }
  launch_layer_inputs({.embedding = s.token_inputs,
                       .norm = floats(p.weights.norm),
                       .epsilon = s.hp.rms_epsilon,
                       .rows = rows,
                       .layers = s.hp.layers,
                       .count = s.hp.layer_input,
                       .width = s.hp.width,
                       .inputs = p.inputs},
                      stream);
}

void Matrices::State::add_input(const FinishParams& p, cudaStream_t stream) {
  const Layer& layer = *p.layer;
  const int rows = p.pass.rows, first = p.pass.decode_rows, count = hp.layer_input;
  project_rows(p.x, layer.input_gate, raw, p.pass, stream);
  launch_input_hidden({.activation = hp.activation,
                       .gate = raw,
                       .inputs = p.inputs + static_cast<int64_t>(p.index) * count,
                       .rows = rows,
                       .count = count,
                       .stride = hp.layers * count,
                       .hidden = hidden},
                      stream);
  if (first > 0) {
    SkinnyRows product;
    product.in.rounded = hidden;
    product.in.scratch = packed;
    product.w = matrix(layer.input_proj);
    product.y = target(layer.input_norm, p.x, 0);
    product.rows = first;
    product.cols = count;
    product.w_rows = hp.width;
    product.add = !layer.input_norm;
    launch_skinny_rows(product, stream);
  }
  if (rows > first) {
    multiply({.x = hidden + static_cast<int64_t>(first) * count,
              .y = target(layer.input_norm, p.x, first),
              .cols = count,
              .stride = hp.width,
              .add = !layer.input_norm},
             {&layer.input_proj}, p.pass, stream);
  }
}

void Matrices::finish(const FinishParams& p, cudaStream_t stream) {
  State& s = *state_;
  const Layer& layer = *p.layer;
  s.normed_x = {};
  if (layer.input_gate) s.add_input(p, stream);
  if (layer.input_gate && layer.input_norm) {
    return s.add_normed(layer.input_norm, p.x, 0, p.pass.rows, stream, layer.output_scale);
  }
  if (layer.output_scale) {
    launch_scale(p.x, static_cast<int64_t>(p.pass.rows) * s.hp.width, floats(layer.output_scale), stream);
  }
}

}  // namespace tidal::cuda
