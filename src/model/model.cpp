#include "model/model.h"

#include "core/error.h"
#include "model/load.h"

namespace tidal {
namespace {

template <typename Layers, typename Function>
void for_each_weight(Layers& layers, Function&& function) {
  for (auto& layer : layers) {
    for (auto* weight : {&layer.attn_norm, &layer.wq, &layer.wk, &layer.wv, &layer.bq, &layer.bk, &layer.bv,
                         &layer.q_norm, &layer.k_norm, &layer.wo, &layer.bo, &layer.ffn_norm, &layer.gate, &layer.up,
                         &layer.down, &layer.b_gate, &layer.b_up, &layer.b_down}) {
      if (*weight) function(*weight);
    }
  }
}

void upload(Model& model, Backend& backend) {
  const bool tied = model.output.data == model.embedding.data;
  model.embedding = backend.upload(model.embedding);
  model.output = tied ? model.embedding : backend.upload(model.output);
  model.output_norm = backend.upload(model.output_norm);
  for_each_weight(model.layers, [&](Weight& weight) { weight = backend.upload(weight); });
}

}  // namespace

int64_t Model::decode_weight_bytes() const {
  size_t bytes = embedding.row_bytes() + output.bytes() + output_norm.bytes();
  for_each_weight(layers, [&](const Weight& weight) { bytes += weight.bytes(); });
  return static_cast<int64_t>(bytes);
}

Model load_model(const std::string& path, Backend& backend) {
  const GgufFile file = GgufFile::open(path);
  Model model = read_weights(file, read_hyperparameters(file));
  upload(model, backend);
  return model;
}

Model random_model(const Hyperparameters& hp, ggml_type type, uint64_t seed, Backend& backend) {
  Model model;
  model.hp = hp;
  model.quantisation = ggml_type_name(type);
  auto memory = std::make_shared<std::vector<Buffer>>();

  // One quantised stretch of noise, laid over every matrix from another start: the values do not matter to a benchmark,
  // that they are finite and stand in memory of their own does.
  constexpr int64_t kRow = 1024, kRows = 1024;
  const int64_t block = ggml_blck_size(type);
  if (kRow % block != 0 || (type != GGML_TYPE_F32 && !ggml_get_type_traits(type)->to_float)) {
    fail("weight type: {} cannot be used for random weights", ggml_type_name(type));
  }
  std::vector<float> noise(kRow * kRows);
  uint64_t state = seed * 2 + 1;
  for (float& value : noise) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f * 0.05f;
  }
  std::vector<std::byte> pattern(ggml_row_size(type, kRow) * kRows);
  const std::vector<float> importance(kRow, 1.0f);  // some quantisations insist on one
  ggml_quantize_chunk(type, noise.data(), pattern.data(), 0, kRows, kRow, importance.data());

  const auto allocate = [&](size_t bytes) {
    memory->push_back(make_reference_backend()->allocate(bytes, "random weights"));
    return memory->back().as<std::byte>();
  };
  const auto matrix = [&](int64_t rows, int64_t cols) {
    if (cols % block != 0) {
      fail("weight type: rows of {} elements cannot be {}, expected a multiple of {}", cols, ggml_type_name(type),
           block);
    }
    Weight weight{type, rows, cols, nullptr};
    const size_t bytes = weight.row_bytes() * static_cast<size_t>(rows);
    std::byte* data = allocate(bytes);
    for (size_t at = 0; at < bytes; at += pattern.size()) {
      std::copy_n(pattern.data(), std::min(pattern.size(), bytes - at), data + at);
    }
    weight.data = data;
    return weight;
  };
  const auto vector = [&](int64_t cols, float value) {
    std::byte* data = allocate(sizeof(float) * static_cast<size_t>(cols));
    std::fill_n(reinterpret_cast<float*>(data), cols, value);
    return Weight{GGML_TYPE_F32, 1, cols, data};
  };

  model.embedding = matrix(hp.vocab, hp.width);
  model.output = matrix(hp.vocab, hp.width);
  model.output_norm = vector(hp.width, 1.0f);
  for (int l = 0; l < hp.layers; ++l) {
    Layer layer;
    layer.attn_norm = vector(hp.width, 1.0f);
    layer.wq = matrix(hp.q_width(), hp.width);
    layer.wk = matrix(hp.kv_width(), hp.width);
    layer.wv = matrix(hp.kv_width(), hp.width);
    if (hp.architecture == "qwen2") {
      layer.bq = vector(hp.q_width(), 0.0f);
      layer.bk = vector(hp.kv_width(), 0.0f);
      layer.bv = vector(hp.kv_width(), 0.0f);
    }
    if (hp.architecture == "qwen3") {
      layer.q_norm = vector(hp.head_dim, 1.0f);
      layer.k_norm = vector(hp.head_dim, 1.0f);
    }
    layer.wo = matrix(hp.width, hp.q_width());
    layer.ffn_norm = vector(hp.width, 1.0f);
    layer.gate = matrix(hp.ffn, hp.width);
    layer.up = matrix(hp.ffn, hp.width);
    layer.down = matrix(hp.width, hp.ffn);
    model.layers.push_back(layer);
  }
  model.storage = memory;
  upload(model, backend);
  return model;
}

}  // namespace tidal
