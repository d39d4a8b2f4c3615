#include "backend/cuda/experts/chosen_tiles.cuh"

namespace tidal::cuda::skinny {

template struct ChosenOf<tiles::Q6_K>;
template struct ChosenOf<tiles::Q8_0>;

}  // namespace tidal::cuda::skinny
