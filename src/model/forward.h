// The forward pass, written once for all backends.
#pragma once

#include <span>
#include <vector>

#include "model/model.h"
#include "model/plan.h"

namespace tidal {

/// Buffers of the forward pass for up to `max_rows` rows; run() allocates nothing.
class Forward {
 public:
  Forward(Backend& backend, const Model& model, int max_rows, int max_context, const Policy& policy);

  /// Runs `batch` over every layer. `kv(layer)` is the cache of each. logits: [batch.logit_rows, vocab].
  void run(const Plan& plan, const Batch& batch, std::span<const KvLayer> kv, std::span<float> logits);

  /// The selection buffers, for inspection after run().
  const Selection& selection() const { return selection_; }

 private:
  Backend& backend_;
  const Model& model_;
  int max_rows_;
  Buffer x_, q_, out_, positions_;
  Selection selection_;
};

}  // namespace tidal
