// Grid (pieces of a list, lists, rows), 4 warps: four lanes a position, which look at two ways each, so eight positions
// a warp. What is missing is copied by whole warps, all rows of a warp on their way at the same time: one takes 2 us,
// however many there are.
//
// Nothing is locked. A way changes its tag once in a step at most, when it is used for the first time: by one atomic
// exchange from the tag that was seen, either to the same row with this step's stamp, or to another row. Whoever loses
// looks again. Since all see the same ways in the same order of rank, no row comes into a set twice. A row that another
// CTA has claimed may not be there yet: it is when the next kernel reads it, and this one reads none.
#include "backend/cuda/row_cache/resolve_rows.h"
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/sketch.h"

namespace tidal::cuda {
namespace {

constexpr int kLookupLanes = 4;              // of a position
constexpr int kLookups = 32 / kLookupLanes;  // positions of a warp
constexpr int kResolveWarps = 4;             // of a CTA
constexpr int kPiece = kResolveWarps * kLookups;
constexpr int kAhead = 8;  // 16-byte units that a lane asks for before it waits: 8 rows of 512 bytes a warp
constexpr uint32_t kAllLanes = 0xffffffffu;

struct RowCopy {
  const std::byte* from;
  std::byte* to;
};

struct FoundWay {
  int way = -1;          ///< -1: none
  bool claimed = false;  ///< the row is yet to be copied there
};

/// Looks for `row` in a set, or takes a way of it. The whole warp calls it; `pending` and the arguments are the same in
/// the four lanes of a position.
__device__ inline FoundWay find_way(RowTag* set, RowTag row, uint32_t step, bool pending) {
  const int part = static_cast<int>(threadIdx.x % kLookupLanes);
  const RowTag wanted = stamped(row, step);
  FoundWay found;
  // At most a round for every way of the set.
  while (__any_sync(kAllLanes, pending)) {
    ulonglong2 own = {0, 0};
    if (pending) own = __ldcg(reinterpret_cast<const ulonglong2*>(set) + part);  // others change it: not from the L1
    uint32_t best =
        max(way_rank(own.x, row, step) * kWays + 2 * part, way_rank(own.y, row, step) * kWays + 2 * part + 1);
    best = max(best, __shfl_xor_sync(kAllLanes, best, 1));
    best = max(best, __shfl_xor_sync(kAllLanes, best, 2));
    const int way = static_cast<int>(best % kWays);
    const uint32_t rank = best / kWays;
    const RowTag seen = __shfl_sync(kAllLanes, way % 2 == 0 ? own.x : own.y, way / 2, kLookupLanes);
    bool taken = seen == wanted;  // at this step already
    if (pending && part == 0 && rank != kUsedWay && !taken) taken = atomicCAS(set + way, seen, wanted) == seen;
    taken = __shfl_sync(kAllLanes, static_cast<int>(taken), 0, kLookupLanes) != 0;
    if (!pending) continue;
    if (rank == kUsedWay) {
      pending = false;
    } else if (taken) {
      found = {way, rank != kHoldingWay};
      pending = false;
    }
  }
  return found;
}

/// Copies rows of `units` 16 bytes each; the whole warp.
__device__ inline void copy_rows(const RowCopy* rows, uint32_t count, uint32_t units) {
  const uint32_t total = count * units;
  for (uint32_t begin = threadIdx.x % 32; begin < total; begin += 32 * kAhead) {
    uint4 values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t unit = begin + 32 * i, r = unit / units;
      if (unit < total) values[i] = __ldcg(reinterpret_cast<const uint4*>(rows[r].from) + (unit - r * units));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t unit = begin + 32 * i, r = unit / units;
      if (unit < total) reinterpret_cast<uint4*>(rows[r].to)[unit - r * units] = values[i];
    }
  }
}

/// Has a row in device memory on its way to the L2, for the attention behind; the four lanes of its position.
__device__ inline void fetch_row(const std::byte* row, int bytes) {
  for (int at = static_cast<int>(threadIdx.x % kLookupLanes) * 128; at < bytes; at += kLookupLanes * 128) {
    prefetch(row + at);
  }
}

/// A selected position: its row's number in the layer, and what it is looked up by.
struct SelectedRow {
  int32_t number = 0;
  bool on_device = false;
  RowTag tag = 0;  ///< 0: it has no place in the cache

  __device__ SelectedRow(const ResolveArgs& args, const DeviceRow& row, int position, int kv_head) {
    const int32_t* const entry = row.table + position / kBlockTokens;
    const int slot = *entry, offset = position % kBlockTokens;
    number = (slot * args.kv_heads + kv_head) * kBlockTokens + offset;
    on_device = slot < args.device_slots;
    // What this pass writes is not to be read before the kernels before are through.
    if (on_device || position >= row.position) return;
    const uint32_t generation = args.tables.generations[entry - args.tables.blocks];
    if (generation != 0) tag = row_tag(generation, offset);
  }
  SelectedRow() = default;
};

__global__ void __launch_bounds__(32 * kResolveWarps) resolve_rows_kernel(const __grid_constant__ ResolveArgs args) {
  __shared__ RowCopy copies[kResolveWarps][kLookups];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const bool leads = lane % kLookupLanes == 0;
  const int batch_row = args.first_row + static_cast<int>(blockIdx.z), list = static_cast<int>(blockIdx.y);
  const DeviceRow row = row_of(args.tables, batch_row);
  const uint32_t step = *args.tables.step;
  if (!args.early) wait_for_kernels_before();

  const int unit = list * args.units / args.lists, kv_head = list * args.kv_heads / args.lists;
  const int index = static_cast<int>(blockIdx.x) * kPiece + warp * kLookups + lane / kLookupLanes;
  const bool used = index < args.counts[args.row_units * batch_row + unit];
  SelectedRow selected;
  if (used) {
    const int position = args.positions[static_cast<int64_t>(args.row_positions) * batch_row +
                                        static_cast<int64_t>(row.budget + kBlockTokens - 1) * unit + index];
    selected = SelectedRow(args, row, position, kv_head);
  }
  const int64_t first_way =
      (static_cast<int64_t>(kv_head) * args.cache.sets + row_set(selected.tag, args.cache.sets)) * kWays;
  const FoundWay found = find_way(args.cache.tags + first_way, selected.tag, step, selected.tag != 0);
  const std::byte* const home = args.kv + static_cast<int64_t>(selected.number) * args.row_bytes;
  std::byte* const place = args.cache.rows + (first_way + found.way) * args.row_bytes;
  if (used && selected.on_device) fetch_row(home, args.row_bytes);
  if (found.way >= 0 && !found.claimed) fetch_row(place, args.row_bytes);

  const uint32_t claims = __ballot_sync(kAllLanes, found.claimed && leads);
  if (found.claimed && leads) copies[warp][__popc(claims & ((1u << lane) - 1))] = {home, place};
  __syncwarp();
  copy_rows(copies[warp], __popc(claims), static_cast<uint32_t>(args.row_bytes) / 16);

  // Only here: attention of other rows, which reads this list, may be before it.
  if (args.early) wait_for_kernels_before();
  if (!used || !leads) return;
  args.resolved[(static_cast<int64_t>(batch_row) * args.lists + list) * args.list_room + index] =
      found.way < 0 ? selected.number : ~static_cast<int32_t>(first_way + found.way);
}

}  // namespace

void launch_resolve_rows(const ResolveArgs& args, cudaStream_t stream) {
  const dim3 grid((args.list_room + kPiece - 1) / kPiece, args.lists, args.run);
  launch("looking up rows of K and V", Start::Early, resolve_rows_kernel, grid, dim3(32 * kResolveWarps), 0, stream,
         args);
}

}  // namespace tidal::cuda
