// What the kernels of completions are launched with. `run`: rows of the launch; a row of the run is row first_row + r
// of the batch. Lists of positions are ascending and have room for `room`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime/head_tiles.h"
#include "backend/cuda/runtime/kv_values.cuh"
#include "backend/cuda/runtime/step_tables.h"
#include "backend/policy.h"

namespace tidal::cuda {

/// Most parts that a row's estimates are cut into.
inline constexpr int kMostParts = 64;

/// How a position of the estimated tier counts.
enum class Source : int32_t {
  Sketch,    ///< score by the key's sketch, value by the value's
  Key,       ///< score by the key
  Selected,  ///< the same, and its own value
};

struct CompleteArgs {
  StepTables tables = {};
  int first_row = 0;
  int run = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  Completion completion;
  float scale = 0;                     ///< log2(e) / sqrt(head_dim)
  const float* sink_logits = nullptr;  ///< [heads], or null
  const float* q = nullptr;            ///< [rows of the batch, heads, head_dim]
  float* out = nullptr;                ///< the same
  const std::byte* kv = nullptr;       ///< KvLayer::data
  KvRowLayout row;                     ///< of it
  int row_bytes = 0;
  int64_t tile_stride = 0;
  const std::byte* value_sketches = nullptr;
  ValueSketchPlaces places{16};
  float* scores = nullptr;  ///< [run, heads, score_stride], by sketches, raw; of the estimated tier
                            ///< -infinity once its weights are known
  int64_t score_stride = 0;
  const SoftmaxPart* statistics = nullptr;  ///< [run, heads, statistic_parts]
  int statistic_parts = 0;
  int32_t* positions = nullptr;  ///< Selection
  int32_t* counts = nullptr;
  int row_positions = 0;
  int row_units = 0;
  int room = 0;
  const int32_t* lists = nullptr;  ///< [run, row_lists]: of a row the estimated tier, [kv_heads, stride of it]
  int row_lists = 0;
  const int32_t* list_counts = nullptr;  ///< [run, kv_heads]
  Source* sources = nullptr;             ///< [run, kv_heads, room]
  int32_t* ranked = nullptr;             ///< [run, kv_heads, room] places in the estimated tier
  uint32_t* keys = nullptr;              ///< [run, kv_heads, room] what they are ranked by
  float* key_scores = nullptr;           ///< [run, heads, room] of the ranked positions
  float* weights = nullptr;              ///< [run, heads, room] of the estimated tier, relative to `references`
  float* references = nullptr;           ///< [run, heads] raw scores
  int splits = 0;
  float* parts = nullptr;      ///< [run, heads, splits, head_dim]
  float* part_sums = nullptr;  ///< [run, heads, splits]
};

void launch_tiers(const CompleteArgs& args, cudaStream_t stream);
void launch_parts(const CompleteArgs& args, cudaStream_t stream);
void launch_combine(const CompleteArgs& args, cudaStream_t stream);

}  // namespace tidal::cuda
