#include "backend/cuda/products/matmul_quantised.cuh"

namespace tidal::cuda::skinny {

template struct Quantised<tiles::IQ4_NL>;
template struct Quantised<tiles::IQ4_XS>;
template struct Quantised<tiles::MXFP4>;

}  // namespace tidal::cuda::skinny
