#include "model/model.h"

#include <atomic>

#include "core/error.h"
#include "model/backend_check.h"
#include "model/key_units.h"
#include "model/load.h"

namespace tidal {
namespace {

/// function(weight, whether it is one of Backend::upload_exact()).
template <typename Layers, typename Function>
void for_each_weight(Layers& layers, Function&& function) {
  for (auto& layer : layers) {
    auto& delta = layer.delta;
    for (auto* weight :
         {&layer.attn_norm, &layer.wq, &layer.wk, &layer.wv, &layer.bq, &layer.bk, &layer.bv, &layer.q_norm,
          &layer.k_norm, &layer.sink_logits, &layer.attn_gate, &layer.wo, &layer.bo, &layer.attn_post_norm,
          &layer.ffn_norm, &layer.gate, &layer.up, &layer.down, &layer.b_gate, &layer.b_up, &layer.b_down,
          &layer.ffn_post_norm, &layer.input_gate, &layer.input_proj, &layer.input_norm, &layer.output_scale,
          // of experts
          &layer.router_bias, &layer.expert_gate, &layer.expert_up, &layer.expert_down, &layer.gate_scales,
          &layer.up_scales, &layer.down_scales, &layer.shared_gate, &layer.shared_up, &layer.shared_down,
          &layer.router_norm, &layer.expert_norm, &layer.shared_post_norm, &layer.expert_post_norm,
          // of recurrent layers
          &delta.mixed, &delta.gate, &delta.beta, &delta.alpha, &delta.alpha_bias, &delta.decay, &delta.norm,
          &delta.out}) {
      if (*weight) function(*weight, false);
    }
    for (auto* weight :
         {&layer.router, &layer.shared_switch, &layer.gate_biases, &layer.up_biases, &layer.down_biases, &delta.taps}) {
      if (*weight) function(*weight, true);
    }
  }
}

void upload(Model& model, Backend& backend) {
  const bool tied = model.output.data == model.embedding.data;
  model.embedding = backend.upload(model.embedding);
  const float scale = model.output.scale;
  model.output = tied ? model.embedding : backend.upload(model.output);
  if (tied) model.output.scale = scale;
  model.output_norm = backend.upload(model.output_norm);
  if (LayerInputs& inputs = model.layer_inputs) {
    for (Weight* weight : {&inputs.embedding, &inputs.projection, &inputs.norm}) *weight = backend.upload(*weight);
  }
  for_each_weight(model.layers, [&](Weight& weight, bool exact) {
    weight = exact ? backend.upload_exact(weight) : backend.upload(weight);
  });
  // Not among the others: they are read with caches in 8 bits alone.
  for (Layer& layer : model.layers) {
    if (layer.key_units) layer.key_units = backend.upload(layer.key_units);
  }
}

int64_t kept_bytes(const Backend& backend, const Model& model) {
  const auto bytes = [&](const Weight& weight) {
    // With a scale of its own a matrix may have to be converted, as floats are.
    const ggml_type type = weight.scale == 1 ? weight.type : backend.matrix_type(GGML_TYPE_F16);
    return kept_bytes(backend, type, weight.rows, weight.cols);
  };
  int64_t sum = bytes(model.embedding) + bytes(model.output_norm);
  if (model.output.data != model.embedding.data) sum += bytes(model.output);
  if (const LayerInputs& inputs = model.layer_inputs) {
    sum += bytes(inputs.embedding) + bytes(inputs.projection) + bytes(inputs.norm);
  }
  for_each_weight(model.layers, [&](const Weight& weight, bool exact) {
    sum += exact ? weight.rows * static_cast<int64_t>(ggml_row_size(GGML_TYPE_F32, weight.cols)) : bytes(weight);
  });
  for (const Layer& layer : model.layers) sum += bytes(layer.key_units);
  return sum;
}

}  // namespace

int64_t Model::decode_weight_bytes() const {
  size_t bytes = embedding.row_bytes() + output.bytes() + output_norm.bytes();
  if (layer_inputs) bytes += layer_inputs.embedding.row_bytes() + layer_inputs.projection.bytes();
  for_each_weight(layers, [&](const Weight& weight, bool) { bytes += weight.bytes(); });
  // Of the experts' matrices only those of the chosen ones.
  for (const Layer& layer : layers) {
    for (const Weight* all : {&layer.expert_gate, &layer.expert_up, &layer.expert_down}) {
      if (*all) bytes -= all->bytes() / hp.experts.count * (hp.experts.count - hp.experts.used);
    }
  }
  return static_cast<int64_t>(bytes);
}

void number_layers(Model& model) {
  static std::atomic<uint64_t> last = 0;
  for (Layer& layer : model.layers) layer.id = ++last;
}

Model load_model(const std::string& path, Backend& backend, const MemoryBeside& beside) {
  const GgufFile file = GgufFile::open(path);
  const Hyperparameters hp = read_hyperparameters(file);
  Model model = read_weights(file, hp);
  set_key_units(model);
  check_backend(backend, path, kept_bytes(backend, model), model.hp, beside);
  upload(model, backend);
  number_layers(model);
  return model;
}

}  // namespace tidal
