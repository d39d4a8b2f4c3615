#include <string>

#include "backend/cuda/experts/chosen_tiles.cuh"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda {
namespace skinny {
namespace {

constexpr int kLeastDepth = 3;  // for devices with 99 KiB

template <class W, class E, int D>
bool fits(int cols) {
  return shared_bytes<W, E, 1, D, false>(1, cols) <= shared_memory_limit();
}

/// The deepest ring that fits beside x.
template <class W, class E>
void launch_bf16(const typename E::Params& params, cudaStream_t stream) {
  if (fits<W, E, 8>(params.cols)) return launch_each_row<W, E, 8>(params, stream);
  if (fits<W, E, 5>(params.cols)) return launch_each_row<W, E, 5>(params, stream);
  launch_each_row<W, E, kLeastDepth>(params, stream);
}

template <class Params>
void launch_of(ggml_type type, const Params& params, cudaStream_t stream) {
  const bool known = tiles::with_type(type, [&](auto t) { ChosenOf<decltype(t)>::launch(params, stream); });
  if (!known) fail_with(std::string("cuda backend: no product takes experts of type ") + ggml_type_name(type));
}

}  // namespace
}  // namespace skinny

bool chosen_fit(int cols) {
  using skinny::ChosenDownEpilogue;
  using Quantised = skinny::Joined<skinny::TileUnits<tiles::Q8_0, true, 1>>;  // the largest slots
  // Devices with too little memory for quantised weights keep bf16.
  const bool quantised = shared_memory_limit() >= kQuantisedMemory;
  return skinny::fits<skinny::Joined<skinny::Bf16Units>, ChosenDownEpilogue, skinny::kLeastDepth>(cols) &&
         (!quantised || skinny::fits<Quantised, ChosenDownEpilogue, skinny::depth_of<Quantised>(skinny::kRings)>(cols));
}

void launch_chosen(const ChosenGateUp& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  if (params.gate.type != GGML_TYPE_BF16) return skinny::launch_of(params.gate.type, params, stream);
  skinny::launch_bf16<skinny::Bf16Units, skinny::ChosenGateUpEpilogue>(params, stream);
}

void launch_chosen(const ChosenDown& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  if (params.w.type != GGML_TYPE_BF16) return skinny::launch_of(params.w.type, params, stream);
  skinny::launch_bf16<skinny::Joined<skinny::Bf16Units>, skinny::ChosenDownEpilogue>(params, stream);
}

}  // namespace tidal::cuda
