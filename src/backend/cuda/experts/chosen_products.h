// The products of a few rows with the experts that each of them goes through: a launch for gate and up, one for down. A
// row reads its own experts' matrices and nothing of others, so that it does not depend on its company.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/experts/route.h"
#include "backend/cuda/products/matmul_skinny.h"

namespace tidal::cuda {

/// Elements of an expert's hidden layer as they lie in memory: whole tiles of quantised matrices.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline int
    padded_ffn(int ffn) {
  return (ffn + 127) / 128 * 128;
}

/// hidden = weight * what `activation` says of gate_e x and up_e x, for each chosen expert e.
struct ChosenGateUp {
  Activation activation = Activation::Silu;
  SkinnyInput in;         ///< float32 rows with the norm, or what the product before left
  SkinnyMatrix gate, up;  ///< [ffn, cols] of the first expert, of one type; ffn a multiple of 8
  int expert_rows =
      0;  ///< from an expert's matrix to the next one's: ffn, or twice as many where gate and up take turns
  const float *gate_scales = nullptr, *up_scales = nullptr, *down_scales = nullptr;  ///< [count]; optional
  const float *gate_biases = nullptr, *up_biases = nullptr;                          ///< [count, ffn]; optional
  Choices choices;
  __nv_bfloat16* hidden = nullptr;  ///< [rows, used, padded_ffn(ffn)], zeros behind an expert's end
  int rows = 0, cols = 0, ffn = 0, used = 0;
};

/// y += the sum of down_e hidden_e over the chosen experts e; `in.rounded` is ChosenGateUp::hidden, `w` [count *
/// w_rows, ffn], and `cols` used * padded_ffn(ffn).
struct ChosenDown : SkinnyRows {
  Choices choices;
  const float* biases = nullptr;  ///< [count, w_rows], added with the experts' weights; optional
  int ffn = 0, used = 0;
};

/// Whether the device has room for a row of x of `width` elements, and for `hidden` ones of the chosen experts
/// together, beside W of any type.
bool chosen_fit(int width, int hidden);
void launch_chosen(const ChosenGateUp& params, cudaStream_t stream);
void launch_chosen(const ChosenDown& params, cudaStream_t stream);

namespace skinny {

/// For the tiles T of one type: chosen_q*.cu, as these take the compiler long.
template <class T>
struct ChosenOf {
  static void launch(const ChosenGateUp& params, cudaStream_t stream);
  static void launch(const ChosenDown& params, cudaStream_t stream);
};

/// The same where shared_memory_limit() is below kQuantisedMemory: chosen_small_*.cu.
template <class T>
struct SmallChosenOf {
  static void launch(const ChosenGateUp& params, cudaStream_t stream);
  static void launch(const ChosenDown& params, cudaStream_t stream);
};

}  // namespace skinny
}  // namespace tidal::cuda
