#include "backend/cuda/experts/grouped_tiles.cuh"

namespace tidal::cuda::grouped {

template struct ProductsOf<tiles::IQ4_NL>;
template struct ProductsOf<tiles::IQ4_XS>;
template struct ProductsOf<tiles::MXFP4>;

}  // namespace tidal::cuda::grouped
