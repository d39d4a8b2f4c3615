// What observers of a forward pass look at, in host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace tidal {

/// `count` values of the backend's memory.
template <typename Value>
std::vector<Value> read_back(Backend& backend, const Value* from, size_t count) {
  std::vector<Value> host(count);
  backend.read(reinterpret_cast<std::byte*>(host.data()), reinterpret_cast<const std::byte*>(from),
               sizeof(Value) * count);
  return host;
}

/// [units] positions that a layer has selected for the chunk, by its policy's scope.
std::vector<std::vector<int32_t>> read_back(Backend& backend, const Hyperparameters& hp, const Chunk& chunk,
                                            const Selection& selection);

}  // namespace tidal
