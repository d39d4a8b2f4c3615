#include "backend/cuda/experts/grouped_tiles.cuh"

namespace tidal::cuda::grouped {

template struct ProductsOf<tiles::Q5_0>;
template struct ProductsOf<tiles::Q5_1>;
template struct ProductsOf<tiles::Q5_K>;

}  // namespace tidal::cuda::grouped
