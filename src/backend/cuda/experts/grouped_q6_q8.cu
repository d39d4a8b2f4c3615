#include "backend/cuda/experts/grouped_tiles.cuh"

namespace tidal::cuda::grouped {

template struct ProductsOf<tiles::Q6_K>;
template struct ProductsOf<tiles::Q8_0>;

}  // namespace tidal::cuda::grouped
