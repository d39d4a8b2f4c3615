#include "model/forward.h"

#include "core/error.h"

namespace tidal {

Forward::Forward(Backend& backend, const Model& model, int max_rows, int max_context, const Policy& policy)
    : backend_(backend), model_(model), max_rows_(max_rows) {
  const Hyperparameters& hp = model.hp;
  const auto floats = [&](int width) {
    return backend.allocate(sizeof(float) * static_cast<size_t>(max_rows) * width, "activations");
  };
  x_ = floats(hp.width);
  q_ = floats(hp.q_width());
  out_ = floats(hp.q_width());
  selection_.policy = policy;
  selection_.units = scope_units(policy.scope, hp.heads, hp.kv_heads);
  // A budget that no context exceeds selects nothing.
  const size_t budget = policy.budget < max_context ? policy.budget : 0;
  positions_ = backend.allocate(sizeof(int32_t) * max_rows * selection_.units * budget, "selected positions");
  selection_.positions = positions_.as<int32_t>();
  backend.reserve(hp, max_rows, max_context);
}

void Forward::run(const Plan& plan, const Batch& batch, std::span<const KvLayer> kv, std::span<float> logits) {
  const Hyperparameters& hp = model_.hp;
  const int rows = batch.rows();
  if (rows > max_rows_) fail("forward pass: {} rows, made for at most {}", rows, max_rows_);
  const Rows x{x_.as<float>(), rows, hp.width};
  const Rows q{q_.as<float>(), rows, hp.q_width()};
  const Rows out{out_.as<float>(), rows, hp.q_width()};

  backend_.begin(hp, batch);
  backend_.embed(model_.embedding, batch, x);
  for (int l = 0; l < hp.layers; ++l) {
    const Layer& layer = model_.layers[l];
    backend_.qkv(layer, batch, x, q, kv[l]);
    switch (plan.roles[l]) {
      case Role::Dense: backend_.attend(batch, q, kv[l], out); break;
      case Role::Select: backend_.attend_select(batch, q, kv[l], selection_, out); break;
      case Role::Sparse: backend_.attend_sparse(batch, q, kv[l], selection_, out); break;
    }
    backend_.project(layer, out, x);
    backend_.mlp(layer, x);
  }
  backend_.logits(model_.output_norm, model_.output, batch, x, logits);
}

}  // namespace tidal
