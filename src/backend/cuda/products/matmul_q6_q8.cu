#include "backend/cuda/products/matmul_quantised.cuh"

namespace tidal::cuda::skinny {

template struct Quantised<tiles::Q6_K>;
template struct Quantised<tiles::Q8_0>;

}  // namespace tidal::cuda::skinny
