// The delta rule of recurrent layers: Backend::delta() between its projections.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/runtime/step_tables.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal::cuda {

struct DeltaParams {
  StepTables tables;
  DeltaNet net;  ///< head_dim a multiple of 8, at most kMostDeltaDim
  int rows = 0, chunks = 0;
  int64_t state = 0;  ///< elements before this layer's in DeviceChunk::state
  float epsilon = 0;
  const float* taps = nullptr;                          ///< [mixed_width, taps]
  const float *alpha_bias = nullptr, *decay = nullptr;  ///< [value_heads]
  const float* norm = nullptr;                          ///< [head_dim]
  const float *mixed = nullptr, *gates = nullptr;       ///< [rows, mixed_width], [rows, value_width], projected
  const float *beta = nullptr, *alpha = nullptr;        ///< [rows, value_heads], projected
  float *convolved = nullptr, *kept = nullptr, *written = nullptr;  ///< like mixed, alpha and beta; workspace
  float* out = nullptr;                                             ///< [rows, value_width], normed and gated
};
inline constexpr int kMostDeltaDim = 256;

/// Takes the rows of every chunk into its state and reads it. Three launches. A chunk's results do not depend on the
/// others, and those of a row not on how many come with it.
void launch_delta(const DeltaParams& params, cudaStream_t stream);

/// out [rows, width] *= sigmoid(gates [rows, width]).
void launch_gate(const float* gates, float* out, int64_t count, cudaStream_t stream);

}  // namespace tidal::cuda
