// A model small enough for a test: independent random weights of unit gain, so that attention is neither flat nor a
// single peak.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "model/model.h"
#include "model/rope.h"
#include "support/random.h"

namespace tidal::test {

inline Hyperparameters small_shape(int layers = 6) {
  Hyperparameters hp;
  hp.architecture = "llama";
  hp.layers = layers;
  hp.width = 128;
  hp.heads = 6;
  hp.kv_heads = 2;
  hp.head_dim = 32;
  hp.ffn = 192;
  hp.vocab = 97;
  hp.context = 4096;
  hp.rope = make_rope(Rope::Pairing::Halves, hp.head_dim, 10000, {}, {});
  return hp;
}

/// A hybrid whose layers 0 and 4 are recurrent; of the six others a plan may have two Sparse.
inline Hyperparameters small_hybrid() {
  Hyperparameters hp = small_shape(8);
  hp.architecture = "qwen35";
  hp.delta = {.taps = 4, .head_dim = 16, .key_heads = 2, .value_heads = 4};
  hp.gated_attention = true;
  for (int l = 0; l < hp.layers; ++l) hp.recurrent.push_back(l % 4 == 0);
  return hp;
}

/// Of every three layers two see a window, as in Gemma 3; `sinks`: heads have sink logits, as in gpt-oss.
inline Hyperparameters small_windowed(int window, bool sinks = false) {
  Hyperparameters hp = small_shape(9);
  hp.architecture = sinks ? "gpt-oss" : "gemma3";
  for (int l = 0; l < hp.layers; ++l) hp.windows.push_back(l % 3 == 2 ? 0 : window);
  hp.sink_logits = sinks;
  if (!sinks) hp.window_rope = make_rope(Rope::Pairing::Halves, hp.head_dim, 1000, {}, {});
  return hp;
}

/// Every matrix in `type`, norms of 1.
inline Model random_small_model(const Hyperparameters& hp, ggml_type type, Backend& backend, uint64_t stream = 77) {
  Random random(stream);
  auto memory = std::make_shared<std::vector<std::vector<std::byte>>>();
  const auto matrix = [&](int rows, int cols) {
    std::vector<float> values(static_cast<size_t>(rows) * cols);
    for (float& value : values) value = random.normal(1 / std::sqrt(static_cast<float>(cols)));
    std::vector<std::byte>& bytes = memory->emplace_back(ggml_row_size(type, cols) * rows);
    ggml_quantize_chunk(type, values.data(), bytes.data(), 0, rows, cols, nullptr);
    return backend.upload({type, rows, cols, bytes.data()});
  };
  const auto floats = [&](int rows, int cols, float centre, float deviation) {
    std::vector<std::byte>& bytes = memory->emplace_back(sizeof(float) * static_cast<size_t>(rows) * cols);
    auto* values = reinterpret_cast<float*>(bytes.data());
    for (int i = 0; i < rows * cols; ++i) values[i] = centre + (deviation > 0 ? random.normal(deviation) : 0.0f);
    const Weight weight{GGML_TYPE_F32, rows, cols, bytes.data()};
    return rows > 1 ? backend.upload_exact(weight) : backend.upload(weight);
  };
  const auto ones = [&](int count) { return floats(1, count, 1, 0); };
  // 1/2, 1 or 2: an 8-bit cache loses little by those that fit no weights.
  const auto units = [&](int count) {
    auto* values = reinterpret_cast<float*>(memory->emplace_back(sizeof(float) * static_cast<size_t>(count)).data());
    for (int i = 0; i < count; ++i) values[i] = std::ldexp(1.0f, i % 3 - 1);
    return backend.upload({GGML_TYPE_F32, 1, count, memory->back().data()});
  };
  const auto delta = [&](const DeltaNet& net) {
    DeltaWeights weights;
    weights.mixed = matrix(net.mixed_width(), hp.width);
    weights.gate = matrix(net.value_width(), hp.width);
    weights.beta = matrix(net.value_heads, hp.width);
    weights.alpha = matrix(net.value_heads, hp.width);
    weights.taps = floats(net.mixed_width(), net.taps, 0, 0.5f);
    weights.alpha_bias = floats(1, net.value_heads, 0, 1);
    weights.decay = floats(1, net.value_heads, -0.05f, 0.01f);  // so that some dozen rows are remembered
    weights.norm = ones(net.head_dim);
    weights.out = matrix(hp.width, net.value_width());
    return weights;
  };
  Model model;
  model.hp = hp;
  model.embedding = matrix(hp.vocab, hp.width);
  model.output = matrix(hp.vocab, hp.width);
  model.output_norm = ones(hp.width);
  for (int l = 0; l < hp.layers; ++l) {
    Layer layer;
    layer.attn_norm = ones(hp.width);
    if (hp.recurs(l)) {
      layer.delta = delta(hp.delta);
    } else {
      layer.wq = matrix(hp.q_width(l), hp.width);
      if (hp.has_kv(l)) {
        layer.wk = matrix(hp.kv(l).width(), hp.width);
        layer.wv = matrix(hp.kv(l).width(), hp.width);
      }
      layer.wo = matrix(hp.width, hp.q_width(l));
      layer.key_units = hp.has_kv(l) ? units(hp.kv(l).width()) : model.layers[hp.kv_layer(l)].key_units;
      layer.window_rope = hp.rotates_by_window_rope(l);
      if (hp.gated_attention) layer.attn_gate = matrix(hp.q_width(), hp.width);
    }
    layer.window_rope = hp.rotates_by_window_rope(l);
    if (hp.sink_logits) layer.sink_logits = floats(1, hp.heads, 0, 1);
    layer.ffn_norm = ones(hp.width);
    layer.gate = matrix(hp.ffn, hp.width);
    layer.up = matrix(hp.ffn, hp.width);
    layer.down = matrix(hp.width, hp.ffn);
    model.layers.push_back(layer);
  }
  model.storage = memory;
  number_layers(model);
  return model;
}

inline std::vector<Token> random_tokens(int count, uint64_t stream) {
  Random random(stream);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = random.integer(0, small_shape().vocab - 1);
  return tokens;
}

}  // namespace tidal::test
