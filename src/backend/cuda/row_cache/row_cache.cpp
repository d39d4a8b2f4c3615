#include "backend/cuda/row_cache/row_cache.h"

#include <algorithm>
#include <iterator>

#include "backend/cuda/runtime/device.h"

namespace tidal::cuda {
namespace {

int64_t sets(const RowCacheRoom& room) { return (room.rows + kWays - 1) / kWays; }
/// Of a layer.
int64_t ways(const RowCacheRoom& room) { return sets(room) * kWays * room.kv_heads; }
int units(const RowCacheRoom& room) { return scope_units(room.policy.scope, room.heads, room.kv_heads); }
/// Entries of the list of resolved rows that a row of the batch has.
int64_t row_room(const RowCacheRoom& room) {
  return int64_t{std::max(units(room), room.kv_heads)} * most_selected(room.policy);
}
size_t tag_bytes(const RowCacheRoom& room) { return sizeof(RowTag) * room.layers.size() * ways(room); }
size_t row_bytes(const RowCacheRoom& room) { return room.layers.size() * ways(room) * room.row_bytes; }
size_t resolved_bytes(const RowCacheRoom& room) { return sizeof(int32_t) * room.sequences * row_room(room); }

}  // namespace

RowCache::RowCache(const RowCacheRoom& room)
    : room_(room),
      tags_(allocate_device(tag_bytes(room), "cached rows of K and V")),
      rows_(allocate_device(row_bytes(room), "cached rows of K and V")),
      resolved_(allocate_device(resolved_bytes(room), "cached rows of K and V")) {}

int64_t RowCache::bytes(const RowCacheRoom& room) {
  if (room.rows == 0 || room.layers.empty()) return 0;
  return static_cast<int64_t>(tag_bytes(room) + row_bytes(room) + resolved_bytes(room));
}

RowCacheRoom RowCache::with(const RowCacheRoom& room) const {
  RowCacheRoom both = room;
  if (room_.memory != room.memory || room_.row_bytes != room.row_bytes) return both;
  both.layers.clear();
  std::set_union(room_.layers.begin(), room_.layers.end(), room.layers.begin(), room.layers.end(),
                 std::back_inserter(both.layers));
  both.rows = std::max(room_.rows, room.rows);
  both.sequences = std::max(room_.sequences, room.sequences);
  both.policy = room_.policy;
  both.policy.budget = std::max(room_.policy.budget, room.policy.budget);
  if (units(room) > units(room_)) both.policy.scope = room.policy.scope;
  return both;
}

RowCacheLayer RowCache::layer(int index, const KvLayer& kv, const Chunk& chunk) const {
  const auto own = std::lower_bound(room_.layers.begin(), room_.layers.end(), index);
  if (room_.rows == 0 || own == room_.layers.end() || *own != index || kv.memory != room_.memory) return {};
  const int units_of_chunk = scope_units(chunk.policy.scope, room_.heads, room_.kv_heads);
  const bool fits = chunk.first_row < room_.sequences && chunk.most_selected() <= most_selected(room_.policy) &&
                    units_of_chunk <= std::max(units(room_), room_.kv_heads);
  if (!fits) return {};
  const int64_t before = (own - room_.layers.begin()) * ways(room_);
  RowCacheLayer layer;
  layer.cached.tags = tags_.as<RowTag>() + before;
  layer.cached.rows = rows_.as<std::byte>() + before * room_.row_bytes;
  layer.cached.sets = static_cast<uint32_t>(sets(room_));
  layer.resolved = resolved_.as<int32_t>();
  layer.most_selected = most_selected(room_.policy);
  return layer;
}

}  // namespace tidal::cuda
