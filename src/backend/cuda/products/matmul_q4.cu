#include "backend/cuda/products/matmul_quantised.cuh"

namespace tidal::cuda::skinny {

template struct Quantised<tiles::Q4_0>;
template struct Quantised<tiles::Q4_1>;
template struct Quantised<tiles::Q4_K>;

}  // namespace tidal::cuda::skinny
