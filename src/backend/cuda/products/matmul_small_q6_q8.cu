#include "backend/cuda/products/matmul_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallQuantised<tiles::Q6_K>;
template struct SmallQuantised<tiles::Q8_0>;

}  // namespace tidal::cuda::skinny
