#include "backend/cuda/experts/chosen_tiles.cuh"

namespace tidal::cuda::skinny {

template struct ChosenOf<tiles::IQ4_NL>;
template struct ChosenOf<tiles::IQ4_XS>;
template struct ChosenOf<tiles::MXFP4>;

}  // namespace tidal::cuda::skinny
