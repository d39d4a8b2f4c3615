#include <algorithm>
#include <memory>
#include <vector>

#include "core/error.h"
#include "model/backend_check.h"
#include "model/family.h"
#include "model/model.h"

namespace tidal {
namespace {

/// A weight to be made: a matrix, or float32, as vectors always are, of one value but for routers.
struct Part {
  Weight* weight;
  int64_t rows, cols;
  float value = 0;
  bool decides = false;  ///< a router's, in files float32
  bool vectors = false;  ///< each row is one

  bool vector() const { return vectors || rows == 1; }
  bool floats() const { return vector() || decides; }
};

void add_experts(std::vector<Part>& parts, Layer& layer, const Hyperparameters& hp) {
  const Experts& experts = hp.experts;
  const int64_t count = experts.count;
  parts.insert(parts.end(), {{.weight = &layer.router, .rows = count, .cols = hp.width, .decides = true},
                             {&layer.expert_gate, count * experts.ffn, hp.width},
                             {&layer.expert_up, count * experts.ffn, hp.width},
                             {&layer.expert_down, count * hp.width, experts.ffn}});
  if (family_of(hp).expert_biases) {
    parts.insert(parts.end(), {{&layer.router_bias, 1, count},
                               {.weight = &layer.gate_biases, .rows = count, .cols = experts.ffn, .vectors = true},
                               {.weight = &layer.up_biases, .rows = count, .cols = experts.ffn, .vectors = true},
                               {.weight = &layer.down_biases, .rows = count, .cols = hp.width, .vectors = true}});
  }
  if (experts.own_norms) {
    parts.insert(parts.end(), {{&layer.router_norm, 1, hp.width, 1.0f},
                               {&layer.expert_norm, 1, hp.width, 1.0f},
                               {&layer.shared_post_norm, 1, hp.width, 1.0f},
                               {&layer.expert_post_norm, 1, hp.width, 1.0f}});
  }
  if (experts.shared_ffn == 0) return;
  parts.insert(parts.end(), {{&layer.shared_gate, experts.shared_ffn, hp.width},
                             {&layer.shared_up, experts.shared_ffn, hp.width},
                             {&layer.shared_down, hp.width, experts.shared_ffn}});
  if (family_of(hp).shared == Family::Shared::Switched) parts.push_back({&layer.shared_switch, 1, hp.width});
}

void add_delta(std::vector<Part>& parts, DeltaWeights& weights, const Hyperparameters& hp) {
  const DeltaNet& net = hp.delta;
  parts.insert(parts.end(), {{&weights.mixed, net.mixed_width(), hp.width},
                             {&weights.gate, net.value_width(), hp.width},
                             {&weights.beta, net.value_heads, hp.width},
                             {&weights.alpha, net.value_heads, hp.width},
                             {&weights.taps, net.mixed_width(), net.taps, 0.5f, true},
                             {&weights.alpha_bias, 1, net.value_heads},
                             {&weights.decay, 1, net.value_heads, -0.01f},
                             {&weights.norm, 1, net.head_dim, 1.0f},
                             {&weights.out, hp.width, net.value_width()}});
}

/// q, k, v and o. Gemma 4's layers that read the whole context take their keys as values where they have fewer KV heads
/// than those with a window.
void add_attention(std::vector<Part>& parts, Layer& layer, const Hyperparameters& hp, int index) {
  const KvShape kv = hp.kv(index);
  const bool keys_as_values = hp.window_kv && hp.reads_all(index) && kv.heads < hp.window_kv.heads;
  parts.insert(parts.end(), {{&layer.wq, hp.q_width(index), hp.width}, {&layer.wo, hp.width, hp.q_width(index)}});
  if (hp.has_kv(index)) parts.push_back({&layer.wk, kv.width(), hp.width});
  if (hp.has_kv(index) && !keys_as_values) parts.push_back({&layer.wv, kv.width(), hp.width});
  if (hp.gated_attention) parts.push_back({&layer.attn_gate, hp.q_width(index), hp.width});
}

void add_finish(std::vector<Part>& parts, Layer& layer, const Hyperparameters& hp) {
  parts.push_back({&layer.output_scale, 1, 1, 1.0f});
  if (hp.layer_input == 0) return;
  parts.insert(parts.end(), {{&layer.input_gate, hp.layer_input, hp.width},
                             {&layer.input_proj, hp.width, hp.layer_input},
                             {&layer.input_norm, 1, hp.width, 1.0f}});
}

std::vector<Part> parts_of(Model& model) {
  const Hyperparameters& hp = model.hp;
  const Family& family = family_of(hp);
  std::vector<Part> parts = {{&model.embedding, hp.vocab, hp.width},
                             {&model.output, hp.vocab, hp.width},
                             {&model.output_norm, 1, hp.width, 1.0f}};
  if (hp.layer_input > 0) {
    const int64_t all = int64_t{hp.layers} * hp.layer_input;
    parts.insert(parts.end(), {{&model.layer_inputs.embedding, hp.vocab, all},
                               {&model.layer_inputs.projection, all, hp.width},
                               {&model.layer_inputs.norm, 1, hp.layer_input, 1.0f}});
  }
  for (int l = 0; Layer & layer : model.layers) {
    const int q_width = hp.q_width(l);
    const KvShape kv = hp.kv(l);
    const bool recurs = hp.recurs(l), has_kv = hp.has_kv(l);
    const int ffn = hp.ffn_of(l);
    set_kind(hp, l, layer);
    if (recurs) {
      add_delta(parts, layer.delta, hp);
    } else {
      add_attention(parts, layer, hp, l);
    }
    if (family.pre_norms) {
      parts.insert(parts.end(), {{&layer.attn_norm, 1, hp.width, 1.0f}, {&layer.ffn_norm, 1, hp.width, 1.0f}});
    }
    if (hp.experts) {
      add_experts(parts, layer, hp);
    } else {
      parts.insert(parts.end(),
                   {{&layer.gate, ffn, hp.width}, {&layer.up, ffn, hp.width}, {&layer.down, hp.width, ffn}});
    }
    if (family.post_norms) {
      parts.insert(parts.end(),
                   {{&layer.attn_post_norm, 1, hp.width, 1.0f}, {&layer.ffn_post_norm, 1, hp.width, 1.0f}});
    }
    if (family.biases) {
      parts.insert(parts.end(), {{&layer.bq, 1, q_width}, {&layer.bk, 1, kv.width()}, {&layer.bv, 1, kv.width()}});
    }
    if (family.sink_logits) parts.push_back({&layer.sink_logits, 1, hp.heads});
    if (family.norms != Family::Norms::None && !recurs) {
      const bool heads = family.norms == Family::Norms::Heads;
      parts.push_back({&layer.q_norm, 1, heads ? kv.head_dim : q_width, 1.0f});
      if (has_kv) parts.push_back({&layer.k_norm, 1, heads ? kv.head_dim : kv.width(), 1.0f});
    }
    if (has_kv) parts.push_back({&layer.key_units, 1, kv.width(), 1.0f});
    if (family.kinds) add_finish(parts, layer, hp);
    ++l;
  }
  return parts;
}

constexpr int64_t kRow = 1024, kRows = 1024;

void add_noise(uint64_t seed, std::vector<float>& values) {
  uint64_t state = seed * 2 + 1;
  for (float& value : values) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value += static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f * 0.05f;
  }
}

/// A stretch of noise, quantised.
std::vector<std::byte> noise_of(ggml_type type, uint64_t seed) {
  if (kRow % ggml_blck_size(type) != 0 || (type != GGML_TYPE_F32 && !ggml_get_type_traits(type)->to_float)) {
    fail("weight type: {} cannot be used for random weights", ggml_type_name(type));
  }
  std::vector<float> noise(kRow * kRows);
  add_noise(seed, noise);
  std::vector<std::byte> quantised(ggml_row_size(type, kRow) * kRows);
  const std::vector<float> importance(kRow, 1.0f);  // some quantisations insist on one
  ggml_quantize_chunk(type, noise.data(), quantised.data(), 0, kRows, kRow, importance.data());
  return quantised;
}

/// Lays `pattern`, in the backend's memory, over [data, data + bytes) again and again.
void fill(Backend& backend, const std::byte* pattern, size_t pattern_bytes, std::byte* data, size_t bytes) {
  size_t done = std::min(pattern_bytes, bytes);
  backend.copy(data, pattern, done);
  for (size_t more; done < bytes; done += more) {
    more = std::min(done, bytes - done);
    backend.copy(data + done, data, more);
  }
}

}  // namespace

int64_t weight_bytes(const Hyperparameters& hp, ggml_type type) {
  Model model;
  model.hp = hp;
  model.layers.resize(hp.layers);
  int64_t bytes = 0;
  for (const Part& part : parts_of(model)) {
    bytes += part.rows * static_cast<int64_t>(ggml_row_size(part.floats() ? GGML_TYPE_F32 : type, part.cols));
  }
  return bytes;
}

Model random_model(const Hyperparameters& hp, ggml_type type, uint64_t seed, Backend& backend,
                   const MemoryBeside& beside) {
  type = backend.matrix_type(type);
  Model model;
  model.hp = hp;
  model.layers.resize(hp.layers);
  model.quantisation = ggml_type_name(type);
  // The values do not matter to a benchmark; that they are finite and stand in memory of their own does. However the
  // backend lays a matrix out, a beginning of it is one of another.
  const std::vector<std::byte> noise = noise_of(type, seed);
  const Weight pattern = backend.upload({type, kRows, kRow, noise.data()});
  const auto pattern_bytes = static_cast<size_t>(backend.matrix_bytes(type, kRows, kRow));
  const std::vector<Part> parts = parts_of(model);
  const auto type_of = [&](const Part& part) { return part.floats() ? GGML_TYPE_F32 : type; };
  const auto bytes_of = [&](const Part& part) {
    if (part.floats()) return part.rows * static_cast<int64_t>(ggml_row_size(GGML_TYPE_F32, part.cols));
    return backend.matrix_bytes(type, part.rows, part.cols);
  };
  // One run of memory: matrices that lie one behind the other may be multiplied as one.
  constexpr int64_t kAlignment = 256;
  int64_t bytes = 0;
  for (const Part& part : parts) {
    if (!part.floats() && part.cols % ggml_blck_size(type) != 0) {
      fail("weight type: rows of {} elements cannot be {}, expected a multiple of {}", part.cols, ggml_type_name(type),
           ggml_blck_size(type));
    }
    const int64_t size = bytes_of(part);
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
  }
  check_backend(backend, "random weights", bytes, hp, beside);

  // In the backend's own memory at once: on the host, a large model's weights would take long to make and to send.
  const auto memory = std::make_shared<Buffer>(backend.allocate(static_cast<size_t>(bytes), "random weights"));
  auto* data = memory->as<std::byte>();
  for (const Part& part : parts) {
    const Weight weight{type_of(part), part.rows, part.cols, data};
    const auto size = static_cast<size_t>(bytes_of(part));
    if (part.floats()) {
      std::vector<float> values(static_cast<size_t>(part.rows * part.cols), part.value);
      if (part.decides) add_noise(seed, values);
      backend.write(data, reinterpret_cast<const std::byte*>(values.data()), size);
    } else {
      fill(backend, pattern.data, pattern_bytes, data, size);
    }
    *part.weight = weight;
    data += (size + kAlignment - 1) / kAlignment * kAlignment;
  }
  for (int l = 0; Layer & layer : model.layers) {
    if (!layer.delta) layer.key_units = model.layers[static_cast<size_t>(hp.kv_layer(l))].key_units;
    ++l;
  }
  model.storage = memory;
  number_layers(model);
  return model;
}

}  // namespace tidal
