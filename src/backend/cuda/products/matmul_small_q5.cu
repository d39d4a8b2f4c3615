#include "backend/cuda/products/matmul_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallQuantised<tiles::Q5_0>;
template struct SmallQuantised<tiles::Q5_1>;
template struct SmallQuantised<tiles::Q5_K>;

}  // namespace tidal::cuda::skinny
