#include <string>

#include "backend/cuda/experts/chosen_products.cuh"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda {
namespace skinny {
namespace {

constexpr int kLeastDepth = 2;  // for devices with 99 KiB

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

bool small_device() { return shared_memory_limit() < kQuantisedMemory; }

template <class Params>
void launch_of(ggml_type type, const Params& params, cudaStream_t stream) {
  const bool known = tiles::with_type(type, [&](auto t) {
    if (small_device()) {
      SmallChosenOf<decltype(t)>::launch(params, stream);
    } else {
      ChosenOf<decltype(t)>::launch(params, stream);
    }
  });
  if (!known) fail_with(std::string("cuda backend: no product takes experts of type ") + ggml_type_name(type));
}

/// Whether a row fits beside quantised weights of any type, whose rings take at most so many bytes.
template <class W, class E>
bool fits_beside(int rings, int cols) {
  using L = Layout<W, E::kM, 1, 1, false>;
  return rings + L::kFixed - L::kRing + W::x_row(units_of<W>(cols)) <= shared_memory_limit();
}

}  // namespace
}  // namespace skinny

bool chosen_fit(int width, int hidden) {
  using namespace skinny;  // NOLINT: of this function
  using AnyTiles = TileUnits<tiles::Q4_0, true>;
  using AnyJoined = Joined<TileUnits<tiles::Q4_0, true, 1>>;
  const bool small = small_device();
  return fits<Bf16Units, ChosenGateUpEpilogue, kLeastDepth>(width) &&
         fits<Joined<Bf16Units>, ChosenDownEpilogue, kLeastDepth>(hidden) &&
         fits_beside<AnyTiles, ChosenGateUpEpilogue>(small ? kSmallChosenRings : kRings, width) &&
         fits_beside<AnyJoined, ChosenDownEpilogue>(small ? kSmallJoinedRings : kRings, hidden);
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
