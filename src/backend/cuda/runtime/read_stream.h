// The device's read bandwidth: the limit that decoding is held against.
#pragma once

#include <cuda_runtime_api.h>

namespace tidal::cuda {

/// Reads a buffer far larger than the L2 some times; the fastest pass, in GB/s (1e9 bytes a second). Takes up to 2 GiB
/// for it. Synchronises.
double measure_read_stream(cudaStream_t stream);

}  // namespace tidal::cuda
