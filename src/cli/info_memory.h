// Of `tidal info`: what of a model and a context would lie where, on devices of some sizes and without one.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/engine_memory.h"

namespace tidal {

/// GiB of devices that there are.
inline constexpr std::array<int, 6> kCards = {8, 12, 16, 24, 48, 80};

struct MemoryTable {
  struct Place {
    int64_t device = 0, host = 0;  ///< of K and V
  };
  /// By one type of cache.
  struct Cache {
    KvType type = KvType::Bf16;
    int64_t bytes = 0;
    std::array<std::optional<Place>, kCards.size()> places;  ///< none: the weights and what a pass needs do not fit
  };

  int context = 0;
  std::string attention;
  int64_t weights = 0, sketches = 0;
  int64_t host_weights = 0;
  int64_t others = 0;  ///< driver and workspace, assumed
  std::array<Cache, 2> caches;
};

/// `weights`: their bytes on the device; `host_weights`: without one.
MemoryTable memory_table(const Hyperparameters& hp, int64_t weights, int64_t host_weights, const Plan& plan,
                         int context);
std::string as_text(const MemoryTable& table);
nlohmann::ordered_json as_json(const MemoryTable& table);

}  // namespace tidal
