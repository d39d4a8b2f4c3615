#include "backend/cuda/experts/chosen_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallChosenOf<tiles::IQ4_NL>;
template struct SmallChosenOf<tiles::IQ4_XS>;
template struct SmallChosenOf<tiles::MXFP4>;

}  // namespace tidal::cuda::skinny
