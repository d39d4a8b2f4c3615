#include "eval/recall.h"

#include <numeric>

#include "core/error.h"
#include "engine/attention_probe.h"
#include "eval/teacher_forced.h"

namespace tidal {
namespace {

double mean(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

std::vector<std::vector<LayerRecall>> measure_recall(Engine& engine, const Sequence& prefix,
                                                     std::span<const Token> tokens, std::span<const Plan> plans,
                                                     const std::function<void()>& step) {
  if (engine.options().sequences != 1) {
    fail("recall: the engine decodes {} sequences a step, of which only one can be watched",
         engine.options().sequences);
  }
  std::vector<std::vector<LayerRecall>> recall;
  for (const Plan& plan : plans) {
    auto& layers = recall.emplace_back();
    for (const Role role : plan.roles) layers.push_back({role, {}, {}, {}});
  }
  const AttentionProbe probe(engine, true);
  teacher_forced(engine, prefix, tokens, plans, [&](const ForcedStep& at) {
    auto& layers = recall[at.plan];
    for (size_t l = 0; l < layers.size(); ++l) {
      const LayerAttention& attention = probe.layers()[l];
      layers[l].mass.add(attention.mean_mass());
      if (attention.agreement.empty()) continue;
      layers[l].agreement.add(mean(attention.agreement));
      layers[l].excess.add(mean(attention.scored_mass) - attention.mean_mass());
    }
    if (step) step();
    return true;
  });
  return recall;
}

}  // namespace tidal
