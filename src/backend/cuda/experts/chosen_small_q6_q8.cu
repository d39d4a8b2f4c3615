#include "backend/cuda/experts/chosen_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallChosenOf<tiles::Q6_K>;
template struct SmallChosenOf<tiles::Q8_0>;

}  // namespace tidal::cuda::skinny
