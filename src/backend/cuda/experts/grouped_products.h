// The products of many rows with the experts that each of them goes through: choices are grouped by expert, and a
// launch multiplies what many experts have. A choice's results do not depend on what else there is.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <ggml.h>

#include <cstdint>

#include "backend/cuda/experts/route.h"

namespace tidal::cuda {

/// Choices in groups of the same expert, device memory. `place` counts them in this order.
struct ExpertGroups {
  int32_t* first = nullptr;  ///< [experts + 1], places where groups begin
  int32_t* tile = nullptr;   ///< [experts + 1], the same in tiles of kGroupTile places, each group's last one filled up
  int32_t* wide = nullptr;   ///< [experts + 1], the same in tiles of kWideTile places
  int32_t* row = nullptr;    ///< [choices], of x, by place
  float* weight = nullptr;   ///< [choices], by place
  int32_t* place = nullptr;  ///< [choices], by row and rank
};
inline constexpr int kGroupTile = 64, kWideTile = 128;

/// Groups the choices of `rows` rows.
void launch_group(const Choices& choices, int rows, const Experts& experts, const ExpertGroups& groups,
                  cudaStream_t stream);

/// Experts [first, first + count) whose matrices, or the same rows of each, lie in a panel of bf16.
struct ExpertPanel {
  int first = 0, count = 0;
  const __nv_bfloat16 *w = nullptr, *up = nullptr;  ///< [rows, cols] of the first
  int begin = 0, rows = 0;                          ///< which rows of each expert's matrix
  int expert_rows = 0;                              ///< from one of them to the next expert's
};

/// All experts' matrices one behind the other in tiles (weights/quantised.h).
struct ExpertTiles {
  ggml_type type = GGML_TYPE_Q4_0;
  const std::byte *w = nullptr, *up = nullptr;
  int expert_rows = 0;  ///< from an expert's matrix to the next one's, a multiple of 8
};

/// hidden [choices, stride] = weight * what `activation` says of gate x and up x, by place; columns [begin, begin +
/// rows).
struct GroupedGateUp {
  Activation activation = Activation::Silu;
  ExpertGroups groups;
  ExpertPanel panel;                                                                 ///< gate in `w`
  ExpertTiles tiles;                                                                 ///< the same
  const float *gate_scales = nullptr, *up_scales = nullptr, *down_scales = nullptr;  ///< [experts]; optional
  const float *gate_biases = nullptr, *up_biases = nullptr;                          ///< [experts, stride]; optional
  const __nv_bfloat16* x = nullptr;                                                  ///< [rows, cols], normed
  __nv_bfloat16* hidden = nullptr;
  int cols = 0, stride = 0;  ///< multiples of 8
};
/// results [choices, stride] = down hidden + weight * bias, by place; columns [begin, begin + rows).
struct GroupedDown {
  ExpertGroups groups;
  ExpertPanel panel;
  ExpertTiles tiles;
  const float* biases = nullptr;          ///< [experts, stride]; optional
  const __nv_bfloat16* hidden = nullptr;  ///< [choices, cols]
  float* results = nullptr;
  int cols = 0, stride = 0;  ///< cols a multiple of 8
};
void launch_grouped(const GroupedGateUp& params, cudaStream_t stream);
void launch_grouped(const GroupedDown& params, cudaStream_t stream);
/// Whether the next two take matrices of so many rows an expert.
bool groups_tiles(ggml_type type, int rows);
/// The same from `tiles`, of all experts and rows: those in `panel` are counted, its pointers are of no account.
void launch_grouped_tiles(const GroupedGateUp& params, cudaStream_t stream);
void launch_grouped_tiles(const GroupedDown& params, cudaStream_t stream);

/// x [rows, width] += the results of each row's choices, in the order of their ranks; without `add` it is their sum.
void launch_combine(const float* results, const int32_t* place, int rows, int used, int width, float* x, bool add,
                    cudaStream_t stream);

}  // namespace tidal::cuda
