// The delta rule of a recurrent layer as the reference computes it: the formulas of Backend::delta(), row by row.
#pragma once

#include "backend/batch.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal::reference {

/// What one row of a recurrent layer brings along, after the projections.
struct DeltaRow {
  const float* mixed = nullptr;  ///< [mixed_width]: queries, keys, values before the convolution
  const float* beta = nullptr;   ///< [value_heads] twice, before sigmoid and softplus
  const float* alpha = nullptr;
};

/// Takes the row into `state` [state_elements] and reads it: out [value_width], before the norm.
void delta_row(const DeltaNet& net, const DeltaWeights& weights, const DeltaRow& row, float epsilon, float* state,
               float* out);

}  // namespace tidal::reference
