#include "engine/read_back.h"

namespace tidal {

std::vector<std::vector<int32_t>> read_back(Backend& backend, const Hyperparameters& hp, const Chunk& chunk,
                                            const Selection& selection) {
  const int units = scope_units(chunk.policy.scope, hp.heads, hp.kv_heads);
  const auto counts = read_back(backend, &selection.count(chunk, 0), static_cast<size_t>(units));
  std::vector<std::vector<int32_t>> selected;
  for (int unit = 0; unit < units; ++unit) {
    selected.push_back(read_back(backend, selection.unit(chunk, unit), static_cast<size_t>(counts[unit])));
  }
  return selected;
}

}  // namespace tidal
