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
  const auto ones = [&](int count) {
    std::vector<std::byte>& bytes = memory->emplace_back(sizeof(float) * count);
    std::fill_n(reinterpret_cast<float*>(bytes.data()), count, 1.0f);
    return backend.upload({GGML_TYPE_F32, 1, count, bytes.data()});
  };
  Model model;
  model.hp = hp;
  model.embedding = matrix(hp.vocab, hp.width);
  model.output = matrix(hp.vocab, hp.width);
  model.output_norm = ones(hp.width);
  for (int l = 0; l < hp.layers; ++l) {
    Layer layer;
    layer.attn_norm = ones(hp.width);
    layer.wq = matrix(hp.q_width(), hp.width);
    layer.wk = matrix(hp.kv_width(), hp.width);
    layer.wv = matrix(hp.kv_width(), hp.width);
    layer.wo = matrix(hp.width, hp.q_width());
    layer.ffn_norm = ones(hp.width);
    layer.gate = matrix(hp.ffn, hp.width);
    layer.up = matrix(hp.ffn, hp.width);
    layer.down = matrix(hp.width, hp.ffn);
    model.layers.push_back(layer);
  }
  model.storage = memory;
  return model;
}

inline std::vector<Token> random_tokens(int count, uint64_t stream) {
  Random random(stream);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = random.integer(0, small_shape().vocab - 1);
  return tokens;
}

}  // namespace tidal::test
