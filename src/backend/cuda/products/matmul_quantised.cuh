// The skinny products of one quantised type.
#pragma once

#include <string>

#include "backend/cuda/products/matmul_launch.cuh"
#include "backend/cuda/products/matmul_quantised.h"
#include "backend/cuda/products/matmul_tiles.cuh"

namespace tidal::cuda::skinny {

/// Bytes of W on their way. More is slower: x, which comes behind them, would wait for it.
inline constexpr int kRings = 76 * 1024;

/// The depth of rings that take at most so many bytes together.
template <class W>
constexpr int depth_of(int bytes) {
  return std::min(8, bytes / (W::kGroups * kWarps * W::kSlot));
}

template <class T, class E>
void launch_one(const typename E::Params& params, cudaStream_t stream) {
  using W = TileUnits<T, true>;
  constexpr int kDepth = depth_of<W>(kRings);
  if (shared_bytes<W, E, 1, kDepth, false>(1, params.cols) > shared_memory_limit()) {
    fail_with("cuda backend: rows of " + std::to_string(params.cols) +
              " columns have no room beside quantised weights on this device, expected --weights bf16");
  }
  launch_variant<W, E, 1, kDepth, false>(params, stream);
}

/// Several rows, packed: whole in shared memory where they fit and are used for more than one tile, a unit with every
/// unit of W otherwise.
template <class T, class E, int NT>
struct Several {
  using W = TileUnits<T, false>;
  // So that 8, or 16, rows of 4096 columns fit beside, but for q8_0, of which 8 fit.
  static constexpr int kDepth = std::max(2, depth_of<W>(NT == 1 ? kRings : 62 * 1024)), kStreamDepth = 2;

  static_assert(NT > 1 || Layout<W, E::kM, NT, kStreamDepth, true>::kFixed <= kQuantisedMemory);

  static bool fits_whole(int rows, int cols) {
    return shared_bytes<W, E, NT, kDepth, false>(rows, cols) <= shared_memory_limit();
  }
  static bool streams() { return Layout<W, E::kM, NT, kStreamDepth, true>::kFixed <= shared_memory_limit(); }

  static void launch(typename E::Params params, cudaStream_t stream) {
    if (!params.in.packed) params.in.packed = launch_pack(params.in, params.rows, params.cols, stream);
    const bool once = params.rows > 8 && E::tiles(params) <= multiprocessors() && streams();
    if (fits_whole(params.rows, params.cols) && !once) {
      launch_variant<W, E, NT, kDepth, false>(params, stream);
    } else {
      launch_variant<W, E, NT, kStreamDepth, true>(params, stream);
    }
  }
};

template <class T, class E>
void launch_tiles(const typename E::Params& params, cudaStream_t stream) {
  using Most = Several<T, E, 2>;
  const bool sixteen = Most::streams() || Most::fits_whole(kQuantisedRows, params.cols);
  launch_by(sixteen ? kQuantisedRows : kQuantisedRows / 2, params, [&](const auto& part) {
    if (part.rows == 1 && !part.in.packed) {
      launch_one<T, E>(part, stream);
    } else if (part.rows <= 8) {
      Several<T, E, 1>::launch(part, stream);
    } else {
      Most::launch(part, stream);
    }
  });
}

template <class T>
void Quantised<T>::launch(const SkinnyRows& params, cudaStream_t stream) {
  launch_tiles<T, RowsEpilogue<1>>(params, stream);
}
template <class T>
void Quantised<T>::launch(const SkinnyGateUp& params, cudaStream_t stream) {
  launch_tiles<T, GateUpEpilogue>(params, stream);
}
template <class T>
void Quantised<T>::launch(const SkinnyQkv& params, cudaStream_t stream) {
  launch_tiles<T, QkvEpilogue>(params, stream);
}

}  // namespace tidal::cuda::skinny
