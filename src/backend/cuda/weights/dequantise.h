// Weights from ggml's types to bf16, on the device.
#pragma once

#include <cuda_runtime_api.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "core/bf16.h"

namespace tidal::cuda {

/// Whether launch_dequantise() knows the type: floats, and ggml's quantisations by blocks of 32 and of 256 but for
/// those that look values up in tables (IQ...).
bool dequantises(ggml_type type);
/// Writes `count` weights of `type`, whole blocks and a multiple of 8: what ggml dequantises, rounded to the nearest
/// bf16, ties to even. Bit for bit what the host makes of them, but for the payload of NaN. `from` lies at a multiple
/// of 4 bytes, `to` of 16. Throws Error for a type that it does not know.
void launch_dequantise(ggml_type type, const std::byte* from, int64_t count, Bf16* to, cudaStream_t stream);

}  // namespace tidal::cuda
