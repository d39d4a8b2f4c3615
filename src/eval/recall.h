// How much of the attention mass the selected positions hold, layer by layer.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "eval/next_token.h"

namespace tidal {

struct LayerRecall {
  Role role = Role::Dense;  ///< by the plan
  MeanError mass;           ///< share of the layer's own softmax, averaged over heads, at every step
  MeanError agreement;      ///< of Scan layers: LayerAttention::agreement, averaged over units, at every step
  MeanError excess;         ///< of Scan layers: LayerAttention::scored_mass less mass, averaged over heads
};

/// Feeds `tokens` one a step behind `prefix` by every plan and watches what its layers read: [plans][layers]. `step()`
/// is called for every step of every plan; what it throws ends the run. The engine must take one sequence a step
/// (EngineOptions::sequences of 1), since only one of a batch can be watched. Throws Error otherwise, and as
/// teacher_forced() does.
std::vector<std::vector<LayerRecall>> measure_recall(Engine& engine, const Sequence& prefix,
                                                     std::span<const Token> tokens, std::span<const Plan> plans,
                                                     const std::function<void()>& step = {});

}  // namespace tidal
