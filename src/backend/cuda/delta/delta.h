// The delta rule of recurrent layers: Backend::delta() between its projections.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend/cuda/runtime/step_tables.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal::cuda {

struct DeltaParams {
  StepTables tables;
  DeltaNet net;  ///< head_dim a multiple of 8, at most kMostDeltaDim
  int rows = 0, decode_rows = 0;
  int decode_chunks = 0;
  std::span<const int> long_chunks;  ///< rows of each of the chunks behind them
  int64_t state = 0;                 ///< elements before this layer's in DeviceChunk::state
  float epsilon = 0;
  const float* taps = nullptr;                          ///< [mixed_width, taps]
  const float *alpha_bias = nullptr, *decay = nullptr;  ///< [value_heads]
  const float* norm = nullptr;                          ///< [head_dim]
  const float *mixed = nullptr, *gates = nullptr;       ///< [rows, mixed_width], [rows, value_width], projected
  const float *beta = nullptr, *alpha = nullptr;        ///< [rows, value_heads], projected
  float *convolved = nullptr, *kept = nullptr, *written = nullptr;  ///< like mixed, alpha and beta; workspace
  uint32_t* arrived = nullptr;  ///< [decode_chunks, key_heads], zeros before and after
  float* scratch = nullptr;     ///< scratch_bytes, at least delta_scratch_bytes()
  int64_t scratch_bytes = 0;
  float* out = nullptr;  ///< [rows, value_width], normed and gated
};
inline constexpr int kMostDeltaDim = 256;

/// Takes the rows of every chunk into its state and reads it. Decode rows take one launch, long chunks two and two
/// each; three go row by row: for heads of more than 128 elements, decode rows of convolutions of more than 4 taps, and
/// long chunks where a block has less than 148 KiB of shared memory. A chunk's results do not depend on the others, and
/// those of a decode row not on how many come with it.
void launch_delta(const DeltaParams& params, cudaStream_t stream);
/// The least that a long chunk needs.
int64_t delta_scratch_bytes(const DeltaNet& net);

/// out [rows, width] *= sigmoid(gates [rows, width]).
void launch_gate(const float* gates, float* out, int64_t count, cudaStream_t stream);

}  // namespace tidal::cuda
