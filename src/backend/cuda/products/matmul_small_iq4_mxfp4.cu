#include "backend/cuda/products/matmul_small.cuh"

namespace tidal::cuda::skinny {

template struct SmallQuantised<tiles::IQ4_NL>;
template struct SmallQuantised<tiles::IQ4_XS>;
template struct SmallQuantised<tiles::MXFP4>;

}  // namespace tidal::cuda::skinny
