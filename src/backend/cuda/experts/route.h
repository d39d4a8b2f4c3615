// Which experts rows go through.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/hyperparameters.h"

namespace tidal::cuda {

/// The chosen experts of rows, in the order of their probabilities, and how much each counts.
struct Choices {
  int32_t* experts = nullptr;  ///< [rows, used]
  float* weights = nullptr;    ///< [rows, used]
  float* shared = nullptr;     ///< [rows], of the shared expert; of no account where that has no switch
};

struct RouteParams {
  const float* x = nullptr;              ///< [rows, width]; width a multiple of 8
  const float* norm = nullptr;           ///< [width], weight of an RMS norm; null: none
  float epsilon = 0;                     ///< of the norm
  const float* router = nullptr;         ///< [experts.count, width]
  const float* bias = nullptr;           ///< [experts.count], of logits; optional
  const float* shared_switch = nullptr;  ///< [width]; optional
  int rows = 0, width = 0;
  Experts experts;
  bool few = false;             ///< rows are spread over multiprocessors; the same bits
  float* logits = nullptr;      ///< [rows, experts.count + 1], workspace
  uint32_t* arrived = nullptr;  ///< [rows], zeros, and zeros again behind it
  Choices choices;
};

/// What experts a token may go through at most, and of how many.
inline constexpr int kMostChosen = 32, kMostExperts = 1024;

/// choices = the `used` experts of each row with the highest logits, ties to the lower one, NaN as -infinity, and
/// their probabilities, all in float32. A row's bits do not depend on its company.
void launch_route(const RouteParams& params, cudaStream_t stream);
/// The same of rows of long chunks, whose sums are in another order.
void launch_route_chunks(const RouteParams& params, cudaStream_t stream);

}  // namespace tidal::cuda
