// The chosen experts' products of one quantised type on devices whose blocks have less than kQuantisedMemory of shared
// memory (compute capability 8.6, 8.9 and 12: 99 KiB): the same kernels and bits with shorter rings.
#pragma once

#include "backend/cuda/experts/chosen_products.cuh"

namespace tidal::cuda::skinny {

template <class T>
void SmallChosenOf<T>::launch(const ChosenGateUp& params, cudaStream_t stream) {
  using W = TileUnits<T, true>;
  constexpr int kDepth = depth_of<W>(kSmallChosenRings);
  static_assert(kDepth > 0);
  launch_each_row<W, ChosenGateUpEpilogue, kDepth>(params, stream);
}
template <class T>
void SmallChosenOf<T>::launch(const ChosenDown& params, cudaStream_t stream) {
  using W = Joined<TileUnits<T, true, 1>>;
  constexpr int kDepth = depth_of<W>(kSmallJoinedRings);
  static_assert(kDepth > 0);
  launch_each_row<W, ChosenDownEpilogue, kDepth>(params, stream);
}

}  // namespace tidal::cuda::skinny
