#include "backend/cuda/products/matmul_quantised.cuh"

namespace tidal::cuda::skinny {

template struct Quantised<tiles::Q5_0>;
template struct Quantised<tiles::Q5_1>;
template struct Quantised<tiles::Q5_K>;

}  // namespace tidal::cuda::skinny
