#include "backend/cuda/experts/chosen_tiles.cuh"

namespace tidal::cuda::skinny {

template struct ChosenOf<tiles::Q4_0>;
template struct ChosenOf<tiles::Q4_1>;
template struct ChosenOf<tiles::Q4_K>;

}  // namespace tidal::cuda::skinny
