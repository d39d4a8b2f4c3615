#include "model/forward.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {

Forward::Forward(Backend& backend, const Model& model, int max_rows, int max_context)
    : backend_(backend), model_(model), max_rows_(max_rows) {
  const Hyperparameters& hp = model.hp;
  const auto floats = [&](int width) {
    return backend.allocate(sizeof(float) * static_cast<size_t>(max_rows) * width, "activations");
  };
  x_ = floats(hp.width);
  q_ = floats(hp.q_width());
  out_ = floats(hp.q_width());
  if (hp.layer_input > 0) inputs_ = floats(hp.layers * hp.layer_input);
  backend.reserve(hp, max_rows, max_context);
}

void Forward::reserve_selection(int rows, const Policy& policy) {
  const int units = scope_units(policy.scope, model_.hp.heads, model_.hp.kv_heads);
  const auto ints = [&](int count) {
    return backend_.allocate(sizeof(int32_t) * static_cast<size_t>(rows) * count, "selected positions");
  };
  const int most = most_selected(policy);
  if (units * most > selection_.row_positions) {
    selection_.row_positions = units * most;
    positions_ = ints(selection_.row_positions);
    selection_.positions = positions_.as<int32_t>();
  }
  if (units > selection_.row_units) {
    selection_.row_units = units;
    counts_ = ints(units);
    selection_.counts = counts_.as<int32_t>();
  }
}

Rows Forward::run_layers(const Batch& batch, std::span<const KvLayer> kv, ForwardObserver* observer) {
  const Hyperparameters& hp = model_.hp;
  const int rows = batch.rows();
  if (rows > max_rows_) fail("forward pass: {} rows, made for at most {}", rows, max_rows_);
  const Rows x{x_.as<float>(), rows, hp.width}, inputs{inputs_.as<float>(), rows, hp.layers * hp.layer_input};

  backend_.begin(hp, batch);
  backend_.embed(model_.embedding, batch, x);
  if (model_.layer_inputs) backend_.layer_inputs(model_.layer_inputs, batch, x, inputs);
  for (int l = 0, recurrent = 0; l < hp.layers; ++l) {
    const Layer& layer = model_.layers[l];
    if (layer.delta) {
      backend_.delta(layer, batch, recurrent++, x);
    } else {
      const Rows q{q_.as<float>(), rows, hp.q_width(l)}, out{out_.as<float>(), rows, q.width};
      backend_.qkv(layer, batch, x, q, kv[l]);
      if (!observer || !observer->attends(l, batch, q, kv[l], out, layer.sink_logits)) {
        backend_.attend(batch, l, q, kv[l], selection_, out, layer.sink_logits);  // by chunk.roles[l]
      }
      if (observer) observer->attended(l, batch, q, kv[l], selection_);
      if (layer.attn_gate) backend_.gate(layer, x, out);
      backend_.project(layer, out, x);
    }
    layer.router ? backend_.experts(layer, x) : backend_.mlp(layer, x);
    if (layer.input_gate || layer.output_scale) backend_.finish(layer, l, inputs, x);
  }
  return x;
}

void Forward::run(const Batch& batch, std::span<const KvLayer> kv, std::span<float> logits, ForwardObserver* observer) {
  const Rows x = run_layers(batch, kv, observer);
  backend_.logits(model_.output_norm, model_.output, batch, x, logits);
}

void Forward::run(const Batch& batch, std::span<const KvLayer> kv, int count, std::span<LikelyToken> likely,
                  ForwardObserver* observer) {
  const Rows x = run_layers(batch, kv, observer);
  backend_.likely(model_.output_norm, model_.output, batch, x, count, likely);
}

}  // namespace tidal
