// How much of K and V in host memory a device keeps at hand.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/kv_memory.h"
#include "backend/policy.h"

namespace tidal {

/// What Backend::cache_rows() makes room for.
struct RowCacheRoom {
  const KvMemory* memory = nullptr;  ///< KvLayer::memory of the layers
  std::vector<int> layers;           ///< ascending: those that read selected positions
  int rows = 0;                      ///< [K | V] of positions, of each KV head of each of them; 0: no cache
  int heads = 0;
  int kv_heads = 0;
  int64_t row_bytes = 0;  ///< of a position and KV head
  int sequences = 0;      ///< most sparse chunks of a pass
  Policy policy = {};     ///< theirs, in numbers

  bool operator==(const RowCacheRoom&) const = default;
};

}  // namespace tidal
