// Long chunks of recurrent layers, 64 rows at a time.
#pragma once

#include "backend/cuda/delta/delta.h"

namespace tidal::cuda {

/// Whether launch_delta_chunk() takes such layers.
bool chunks_at_once(const DeltaNet& net);
/// Takes the rows of one chunk into its state: convolved rows, log(a) in `kept`, b in `written`; what is read of S goes
/// to `out`, neither normed nor gated. Two launches for every DeltaParams::scratch full of rows.
void launch_delta_chunk(const DeltaParams& params, int chunk, int rows, cudaStream_t stream);

}  // namespace tidal::cuda
