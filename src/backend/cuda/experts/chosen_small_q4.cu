#include "backend/cuda/experts/chosen_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallChosenOf<tiles::Q4_0>;
template struct SmallChosenOf<tiles::Q4_1>;
template struct SmallChosenOf<tiles::Q4_K>;

}  // namespace tidal::cuda::skinny
