// The skinny products with quantised matrices: launch_skinny_...() of matmul_skinny.h come here.
#pragma once

#include "backend/cuda/products/matmul_skinny.h"

namespace tidal::cuda {

/// Of matrices in tiles of this type; all that are there are of it.
void launch_quantised(ggml_type type, const SkinnyRows& params, cudaStream_t stream);
void launch_quantised(ggml_type type, const SkinnyGateUp& params, cudaStream_t stream);
void launch_quantised(ggml_type type, const SkinnyQkv& params, cudaStream_t stream);

namespace skinny {

/// Packs rounded rows into in.scratch: [rows][units] as packed_rows.cuh says. Returns where they are.
const std::byte* launch_pack(const SkinnyInput& in, int rows, int cols, cudaStream_t stream);

/// For the tiles T of one type: matmul_q*.cu, as these take the compiler long.
template <class T>
struct Quantised {
  static void launch(const SkinnyRows& params, cudaStream_t stream);
  static void launch(const SkinnyGateUp& params, cudaStream_t stream);
  static void launch(const SkinnyQkv& params, cudaStream_t stream);
};

}  // namespace skinny
}  // namespace tidal::cuda
