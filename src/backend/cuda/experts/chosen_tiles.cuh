// The chosen experts' products of one quantised type.
#pragma once

#include "backend/cuda/experts/chosen_products.cuh"

namespace tidal::cuda::skinny {

template <class T>
void ChosenOf<T>::launch(const ChosenGateUp& params, cudaStream_t stream) {
  using W = TileUnits<T, true>;
  launch_each_row<W, ChosenGateUpEpilogue, depth_of<W>(kRings)>(params, stream);
}
template <class T>
void ChosenOf<T>::launch(const ChosenDown& params, cudaStream_t stream) {
  using W = Joined<TileUnits<T, true, 1>>;
  launch_each_row<W, ChosenDownEpilogue, depth_of<W>(kRings)>(params, stream);
}

}  // namespace tidal::cuda::skinny
