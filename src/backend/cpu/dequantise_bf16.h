// Weights to bf16 in one step, for prefill's products: q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K and q6_K by
// AVX512-BF16.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "core/bf16.h"

namespace tidal {

/// Writes `count` weights of `type`, a whole number of its blocks, each the bf16 nearest to what ggml dequantises.
/// Returns false, having done nothing, where this processor or this type has no kernel here.
bool dequantise_to_bf16(ggml_type type, const std::byte* from, int64_t count, Bf16* to);

}  // namespace tidal
