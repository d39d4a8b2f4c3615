#include "backend/cuda/experts/chosen_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallChosenOf<tiles::Q5_0>;
template struct SmallChosenOf<tiles::Q5_1>;
template struct SmallChosenOf<tiles::Q5_K>;

}  // namespace tidal::cuda::skinny
