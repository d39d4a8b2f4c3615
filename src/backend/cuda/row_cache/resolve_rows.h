// Where the selected rows of a layer are, of whose cache a part lies in host memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/row_cache/row_tags.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// What of a layer's rows in host memory the device holds.
struct CachedRows {
  RowTag* tags = nullptr;     ///< [kv_heads, sets, kWays]
  std::byte* rows = nullptr;  ///< [kv_heads, sets, kWays] rows; null: there is no cache
  uint32_t sets = 0;

  bool operator==(const CachedRows&) const = default;
};

/// Rows are [K | V] of a position and KV head, `row_bytes` each, a multiple of 16.
struct ResolveArgs {
  StepTables tables = {};  ///< with generations, where one that is 0 has its rows not cached
  int first_row = 0;
  int run = 0;
  bool early = false;                  ///< AttendParams
  const int32_t* positions = nullptr;  ///< Selection
  const int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  int units = 0;  ///< sets of positions of a row
  int kv_heads = 0;
  int lists = 0;                  ///< of a row: as many as sets or KV heads, whichever are more
  int list_room = 0;              ///< most positions of a set
  const std::byte* kv = nullptr;  ///< KvLayer::data
  int device_slots = 0;           ///< KvLayer
  int row_bytes = 0;
  CachedRows cache;
  /// [rows of the batch, lists, list_room]: of every selected position the number of its row among the layer's, or the
  /// complement of its number among CachedRows::rows.
  int32_t* resolved = nullptr;
};
/// Looks every selected row up. Those in host memory that the cache does not have come into it, as long as it has room
/// beside what this step has used already; the others stay where they are. Rows that this pass writes are not cached.
void launch_resolve_rows(const ResolveArgs& args, cudaStream_t stream);

}  // namespace tidal::cuda
