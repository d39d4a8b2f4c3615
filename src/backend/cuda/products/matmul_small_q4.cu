#include "backend/cuda/products/matmul_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallQuantised<tiles::Q4_0>;
template struct SmallQuantised<tiles::Q4_1>;
template struct SmallQuantised<tiles::Q4_K>;

}  // namespace tidal::cuda::skinny
