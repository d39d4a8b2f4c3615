#include "backend/cuda/experts/grouped_tiles.cuh"

namespace tidal::cuda::grouped {

template struct ProductsOf<tiles::Q4_0>;
template struct ProductsOf<tiles::Q4_1>;
template struct ProductsOf<tiles::Q4_K>;

}  // namespace tidal::cuda::grouped
