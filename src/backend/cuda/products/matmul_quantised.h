// The skinny products with quantised matrices: launch_skinny_...() of matmul_skinny.h come here.
#pragma once

#include "backend/cuda/products/matmul_skinny.h"

namespace tidal::cuda {

/// Of matrices in tiles of this type; all that are there are of it.
void launch_quantised(ggml_type type, const SkinnyRows& params, cudaStream_t stream);
void launch_quantised(ggml_type type, const SkinnyGateUp& params, cudaStream_t stream);
void launch_quantised(ggml_type type, const SkinnyQkv& params, cudaStream_t stream);

namespace skinny {

/// Packs rounded rows into in.scratch, as packed_rows.cuh says. Returns where they are.
const std::byte* launch_pack(const SkinnyInput& in, int rows, int cols, cudaStream_t stream);

/// For the tiles T of one type: matmul_q*.cu, as these take the compiler long.
template <class T>
struct Quantised {
  static void launch(const SkinnyRows& params, cudaStream_t stream);
  static void launch(const SkinnyGateUp& params, cudaStream_t stream);
  static void launch(const SkinnyQkv& params, cudaStream_t stream);
};
/// The same where shared_memory_limit() is below kQuantisedMemory: matmul_small_*.cu.
template <class T>
struct SmallQuantised {
  static void launch(const SkinnyRows& params, cudaStream_t stream);
  static void launch(const SkinnyGateUp& params, cudaStream_t stream);
  static void launch(const SkinnyQkv& params, cudaStream_t stream);
};
/// Rows that a launch of these multiplies, and the most that one of a single row takes beside x, in bytes.
inline constexpr int kSmallRows = 8, kSmallFixed = 65 * 1024;
/// Whether these take a row of so many columns in float32, whatever the type.
bool small_takes_floats(int cols);

}  // namespace skinny
}  // namespace tidal::cuda
