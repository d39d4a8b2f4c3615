// The units that a cache in 8 bits keeps keys in (model/key_units.h says what they are taken from).
#pragma once

#include "backend/batch.h"
#include "backend/weights.h"

namespace tidal {

/// What an 8-bit cache keeps the keys of a layer in: rotated, each element divided by its unit, [kv_width]; null: they
/// are 1. Queries, rotated and scaled, are multiplied by the units of their KV head, so that scores are what they were;
/// with powers of two that is so for every rounding that goes by the size of a number.
inline const float* key_units_of(const Layer& layer, const KvLayer& kv) {
  return kv.type == KvType::Q8 ? layer.key_units.floats() : nullptr;
}

}  // namespace tidal
