#include "backend/cuda/products/matmul_quantised.h"

#include <string>

#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/shared_memory.h"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda {
namespace {

template <class Params>
void launch_of(ggml_type type, const Params& params, cudaStream_t stream) {
  const bool small = shared_memory_limit() < kQuantisedMemory;
  const bool known = tiles::with_type(type, [&](auto t) {
    if (small) {
      skinny::SmallQuantised<decltype(t)>::launch(params, stream);
    } else {
      skinny::Quantised<decltype(t)>::launch(params, stream);
    }
  });
  if (!known) fail_with(std::string("cuda backend: no product takes weights of type ") + ggml_type_name(type));
}

}  // namespace

void launch_quantised(ggml_type type, const SkinnyRows& params, cudaStream_t stream) {
  launch_of(type, params, stream);
}
void launch_quantised(ggml_type type, const SkinnyGateUp& params, cudaStream_t stream) {
  launch_of(type, params, stream);
}
void launch_quantised(ggml_type type, const SkinnyQkv& params, cudaStream_t stream) { launch_of(type, params, stream); }

}  // namespace tidal::cuda
