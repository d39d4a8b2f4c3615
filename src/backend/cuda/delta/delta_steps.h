// Decode rows of recurrent layers, in one launch.
#pragma once

#include "backend/cuda/delta/delta.h"

namespace tidal::cuda {

inline constexpr int kMostStepDim = 128;

/// Whether launch_delta_steps() takes such layers.
bool steps_at_once(const DeltaNet& net);
/// Those of launch_delta()'s rows that belong to the first decode_chunks chunks.
void launch_delta_steps(const DeltaParams& params, cudaStream_t stream);

}  // namespace tidal::cuda
