// Weights that stay quantised in device memory, laid out as the skinny product reads them: tiles of 8 rows by 128
// columns, those of the same rows one behind the other (quantised_tiles.cuh says what is in a tile).
#pragma once

#include <cuda_runtime_api.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "core/bf16.h"

namespace tidal::cuda {

inline constexpr int kTileRows = 8, kTileCols = 128;

/// Whether matrices of this type stay what they are: ggml's quantisations of 4 to 8 bits, NVFP4 aside.
bool stays_quantised(ggml_type type);
/// The bytes of a tile of such a type.
int tile_bytes(ggml_type type);
/// A matrix [rows, cols] in whole tiles.
inline int64_t tiled_bytes(ggml_type type, int64_t rows, int64_t cols) {
  return (rows + kTileRows - 1) / kTileRows * ((cols + kTileCols - 1) / kTileCols) * tile_bytes(type);
}

/// ggml's blocks of `rows` rows, a multiple of 8 but for a matrix's last ones, to their tiles. `from` lies at a
/// multiple of 4 bytes, `to` of 32. Nothing is rounded; elements behind the ends are zeros.
void launch_tile(ggml_type type, const std::byte* from, int64_t rows, int64_t cols, std::byte* to, cudaStream_t stream);

/// Rows [first, first + count) of a tiled matrix to bf16, [count, cols] at a multiple of 16 bytes: what ggml
/// dequantises, rounded to nearest, ties to even. cols is a multiple of 32.
struct DequantiseRows {
  ggml_type type = GGML_TYPE_Q4_0;
  const std::byte* matrix = nullptr;
  int64_t first = 0, count = 0, cols = 0;
  Bf16* to = nullptr;
};
void launch_dequantise_rows(const DequantiseRows& params, cudaStream_t stream);

/// x [rows, cols] = the rows `tokens` of a tiled matrix in float32, as ggml dequantises them.
struct DequantiseTokens {
  ggml_type type = GGML_TYPE_Q4_0;
  const std::byte* matrix = nullptr;
  const int32_t* tokens = nullptr;  ///< [rows], device memory
  int rows = 0;
  int64_t cols = 0;
  float* x = nullptr;
};
void launch_dequantise_tokens(const DequantiseTokens& params, cudaStream_t stream);

}  // namespace tidal::cuda
