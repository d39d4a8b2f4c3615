// What the kernel of decode attention is launched with. Shapes: `run` is the number of rows of the launch; a row of the
// run is row first_row + r of the batch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/runtime/head_tiles.h"

namespace tidal::cuda {

/// Attention over whole contexts, or over selected positions where `positions` is not null.
struct AttendRowsArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  HeadTiles tiles;
  int head_dim = 0;
  int window = 0;                      ///< of whole contexts: a row sees the last so many positions; 0: all
  const float* sink_logits = nullptr;  ///< [heads], AttendParams
  float scale = 0;                     ///< log2(e) / sqrt(head_dim)
  float cap = 0;                       ///< AttendParams
  bool early = false;                  ///< AttendParams
  bool early_query = false;            ///< of a selection: q may be read before the kernels before are through
  const float* q = nullptr;            ///< [rows of the batch, heads, head_dim]
  float* out = nullptr;                ///< the same
  const std::byte* kv = nullptr;       ///< KvLayer::data
  KvType type = KvType::Bf16;          ///< KvLayer::type
  int64_t tile_stride = 0;             ///< KvLayer::bytes_between_tiles()
  const int32_t* positions = nullptr;  ///< Selection, or null
  const int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  int units = 0;                      ///< sets of positions of a row
  const int32_t* resolved = nullptr;  ///< ResolveArgs: where the selected rows are; null: where the block tables say
  int lists = 0;
  int list_room = 0;
  const std::byte* cached = nullptr;  ///< CachedRows::rows
  float* scores = nullptr;            ///< [run, heads, score_stride] scores that positions are ranked by, or null
  int64_t score_stride = 0;
  bool pools_sums = false;                 ///< probabilities rank them, even with a top-p of 1
  SoftmaxPart* statistics = nullptr;       ///< [run, heads], where scores are wanted
  int splits = 0;                          ///< that a row is cut into at most, whatever its positions
  int used_splits = 0;                     ///< no row of the run takes more
  float* parts = nullptr;                  ///< [run, heads, splits, head_dim]
  SoftmaxPart* part_statistics = nullptr;  ///< [run, heads, splits]
  uint32_t* done = nullptr;                ///< [run, tiles], zeros before and after
  int shared_memory = 0;                   ///< that a CTA may take; 0: what the device has
};
void launch_attend_rows(const AttendRowsArgs& args, cudaStream_t stream);
/// CTAs of that kernel that a multiprocessor holds at once, with bf16; makes it ready to be launched, with other types,
/// too. Throws Error for a head_dim that it was not built for.
int attend_rows_ctas(int head_dim);
/// The same for one head size and type of cache: launches, or where `ctas` is not null only tells how many.
template <int kDim, KvType kType>
void attend_rows(const AttendRowsArgs& args, cudaStream_t stream, int* ctas);
template <>
void attend_rows<512, KvType::Bf16>(const AttendRowsArgs& args, cudaStream_t stream, int* ctas);

}  // namespace tidal::cuda
