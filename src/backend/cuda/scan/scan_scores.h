// The scores of a Scan layer, by the sketches of its keys. Rows as in attention/attend_args.h.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime/head_tiles.h"
#include "backend/cuda/runtime/step_tables.h"
#include "backend/kv_row.h"

namespace tidal::cuda {

/// Scores of a Scan layer that positions are ranked by: [run, heads, score_stride].
struct ScanScoresArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  HeadTiles tiles;
  int head_dim = 0;
  float scale = 0;                      ///< log2(e) / sqrt(head_dim)
  float cap = 0;                        ///< AttendParams
  bool early = false;                   ///< AttendParams
  bool fresh_tables = false;            ///< AttendParams
  const float* q = nullptr;             ///< [rows of the batch, heads, head_dim]
  const std::byte* kv = nullptr;        ///< KvLayer::data
  KvType type = KvType::Bf16;           ///< KvLayer::type
  int row_bytes = 0;                    ///< KvLayer::row_bytes()
  int64_t tile_stride = 0;              ///< KvLayer::bytes_between_tiles()
  const std::byte* sketches = nullptr;  ///< KvLayer::sketches of `bits`
  int64_t sketch_stride = 0;            ///< KvLayer::bytes_between_sketches()
  int bits = 0;
  bool needs_sums = false;  ///< of the softmaxes, even with a top-p of 1; maxima are always there. With them scores
                            ///< have their cap
  float* scores = nullptr;
  int64_t score_stride = 0;
  int splits = 0;
  int shared_memory = 0;                   ///< that a CTA may have, in bytes
  SoftmaxPart* part_statistics = nullptr;  ///< [run, heads, splits]
};
/// Splits of a context: by the model and the device alone. A multiprocessor holds two CTAs, one of large heads.
inline int scan_splits(const HeadTiles& tiles, int head_dim, int processors) {
  return std::clamp((head_dim > 128 ? 1 : 2) * processors / tiles.tiles(), 1, kMaxSplits);
}
void launch_scan_scores(const ScanScoresArgs& args, cudaStream_t stream);

}  // namespace tidal::cuda
