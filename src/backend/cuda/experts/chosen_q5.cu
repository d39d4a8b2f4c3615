#include "backend/cuda/experts/chosen_tiles.cuh"

namespace tidal::cuda::skinny {

template struct ChosenOf<tiles::Q5_0>;
template struct ChosenOf<tiles::Q5_1>;
template struct ChosenOf<tiles::Q5_K>;

}  // namespace tidal::cuda::skinny
