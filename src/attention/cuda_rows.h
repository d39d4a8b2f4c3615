// What tidal_attention.h's rows are before and after the engine's kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/batch.h"
#include "backend/cuda/runtime/step_tables.h"
#include "core/bf16.h"

namespace tidal::cuda {

/// K and V of `rows` positions into the cache: [rows, kv_heads, head_dim], strides in elements.
struct AppendRowsArgs {
  int rows = 0;
  const Bf16* key = nullptr;
  const Bf16* value = nullptr;
  int64_t key_stride = 0, value_stride = 0;
  const int64_t* slots = nullptr;  ///< [rows], block * 64 + place; below 0: nowhere
  KvLayer kv;
};
void launch_append_rows(const AppendRowsArgs& args, cudaStream_t stream);

/// What a pass with one row of each sequence begins with: tables by the rows' contexts, and queries in float32.
struct PrepareRowsArgs {
  int rows = 0;
  const int32_t* contexts = nullptr;  ///< [rows]; below 1: counts as 1
  int table_stride = 0;
  int budget = 0;
  DeviceChunk* chunks = nullptr;  ///< [rows]
  int32_t* row_chunk = nullptr;   ///< [rows]
  int32_t* positions = nullptr;   ///< [rows]
  const Bf16* q = nullptr;        ///< [rows, width], rows `q_stride` elements apart
  int64_t q_stride = 0;
  int width = 0;        ///< a multiple of 8
  float factor = 1;     ///< on queries
  float* to = nullptr;  ///< [rows, width]
};
void launch_prepare_rows(const PrepareRowsArgs& args, cudaStream_t stream);

/// And back: rounded to the nearest, ties to even.
void launch_round_rows(const float* from, int rows, int width, Bf16* to, int64_t stride, cudaStream_t stream);

/// Sets as the caller wants them: [rows, sets, most] and [rows, sets] from sets of `room` positions, none of rows whose
/// context is within the budget.
struct ExportSetsArgs {
  int rows = 0, sets = 0;
  const int32_t* contexts = nullptr;
  int budget = 0, room = 0, most = 0;
  const int32_t* positions = nullptr;  ///< [rows, sets, room]
  const int32_t* counts = nullptr;     ///< [rows, sets]
  int32_t* to_positions = nullptr;
  int32_t* to_counts = nullptr;
};
void launch_export_sets(const ExportSetsArgs& args, cudaStream_t stream);

}  // namespace tidal::cuda
