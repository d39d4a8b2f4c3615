// The KL divergence of many plans on the texts of a calibration.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "eval/calibration_texts.h"
#include "eval/loss_table.h"

namespace tidal {

/// Measures plans: KL(full attention || plan) of the next token's distribution, nats, at every step of a text, teacher-
/// forced. A text is prefilled once, when it is first asked for, and stays in the cache; plans decode from forks of it,
/// several in a batch.
class CalibrationLosses {
 public:
  struct Options {
    int batch = 8;                                  ///< plans decoded together, full attention not counted
    KvType kv_type = KvType::Bf16;                  ///< of the KV cache
    KvPlace kv_place = {};                          ///< where it is
    std::vector<Plan> plans = {};                   ///< EngineOptions::later_plans
    std::function<bool(int64_t tokens)> prefilled;  ///< after every chunk of a prefill; false stops
    std::function<bool(int64_t steps)> decoded;     ///< after every step of a batch, all plans together; false stops
  };
  /// Thrown out of measure() when a function of the options says so.
  struct Halted {};

  /// Backend, model and texts must outlive it. Throws Error when memory is short.
  CalibrationLosses(Backend& backend, const Model& model, std::span<const CalibrationText> texts,
                    const CandidatePolicies& policies, Options options);

  /// A loss for each plan, in their order. What a plan gets depends neither on its company nor on the threads.
  std::vector<TextLoss> measure(std::span<const Candidate> plans, int text);

  /// Seconds of a decode step by `plan` behind the first text's prefix: the median of its steps.
  double step_seconds(const Plan& plan);

  const Engine& engine() const { return engine_; }

 private:
  const Sequence& prefilled(int text);

  std::span<const CalibrationText> texts_;
  CandidatePolicies policies_;
  Options options_;
  Engine engine_;
  std::vector<std::optional<Sequence>> prefixes_;  // by text
};

}  // namespace tidal
