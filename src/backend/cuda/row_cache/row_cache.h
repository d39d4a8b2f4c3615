// Rows of K and V that lie in host memory and are read again and again, kept on the device: least recently used per
// layer and KV head, by the device itself.
#pragma once

#include "backend/batch.h"
#include "backend/cuda/row_cache/resolve_rows.h"
#include "backend/row_cache_room.h"
#include "core/buffer.h"

namespace tidal::cuda {

/// What attention of one layer gets of it; device memory.
struct RowCacheLayer {
  CachedRows cached;
  int32_t* resolved = nullptr;  ///< ResolveArgs; null: there is no cache
  int most_selected = 0;        ///< positions of a set that there is room for

  explicit operator bool() const { return resolved != nullptr; }
  bool operator==(const RowCacheLayer&) const = default;
};

/// Its memory. All layers have one list of resolved rows: they are computed one after the other.
class RowCache {
 public:
  /// Without rows.
  RowCache() = default;
  /// An empty one. Throws Error where the memory is not there.
  explicit RowCache(const RowCacheRoom& room);

  /// Bytes that it takes on the device.
  static int64_t bytes(const RowCacheRoom& room);
  /// What has room for both, where one of them is of this cache.
  RowCacheRoom with(const RowCacheRoom& room) const;
  bool has(const RowCacheRoom& room) const { return with(room) == room_; }
  /// What a sparse chunk has of it in a layer of the model; nothing where the layer, or the chunk, has no part of it.
  RowCacheLayer layer(int index, const KvLayer& kv, const Chunk& chunk) const;

 private:
  RowCacheRoom room_;
  Buffer tags_, rows_, resolved_;
};

}  // namespace tidal::cuda
