// The forward pass, written once for all backends.
#pragma once

#include <span>
#include <vector>

#include "model/model.h"
#include "model/plan.h"

namespace tidal {

/// Watches forward passes, for evaluations.
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;
  /// Has attended in the place of Backend::attend(), where it returns true: another way to select positions.
  virtual bool attends(int /*layer*/, const Batch& /*batch*/, Rows /*q*/, KvLayer /*kv*/, Rows /*out*/,
                       const Weight& /*sink_logits*/) {
    return false;
  }
  /// After the attention of `layer`. The pointers are the backend's memory and valid during the call.
  virtual void attended(int layer, const Batch& batch, Rows q, KvLayer kv, const Selection& selection) = 0;
};

/// Buffers of the forward pass for up to `max_rows` rows; run() allocates nothing.
class Forward {
 public:
  Forward(Backend& backend, const Model& model, int max_rows, int max_context);

  /// Makes room for the selections of up to `rows` sparse chunks with policies (in numbers) like this one.
  void reserve_selection(int rows, const Policy& policy);

  /// Runs `batch` over every layer. `kv[layer]` is the cache of each. logits: [batch.logit_rows, vocab].
  void run(const Batch& batch, std::span<const KvLayer> kv, std::span<float> logits,
           ForwardObserver* observer = nullptr);
  /// The same, for the `count` most likely tokens of every row only: likely [batch.logit_rows, count].
  void run(const Batch& batch, std::span<const KvLayer> kv, int count, std::span<LikelyToken> likely,
           ForwardObserver* observer = nullptr);

 private:
  /// All before the logits; returns what they are made of.
  Rows run_layers(const Batch& batch, std::span<const KvLayer> kv, ForwardObserver* observer);

  Backend& backend_;
  const Model& model_;
  int max_rows_;
  Buffer x_, q_, out_, inputs_, positions_, counts_;
  Selection selection_;
};

}  // namespace tidal
