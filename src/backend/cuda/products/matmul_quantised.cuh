// The skinny products of one quantised type.
#pragma once

#include <string>

#include "backend/cuda/products/matmul_packed.cuh"
#include "backend/cuda/products/matmul_quantised.h"

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
  // So that 8, or 16, rows of 4096 columns fit beside, but for q8_0, of which 8 fit.
  static constexpr int kDepth = std::clamp((NT == 1 ? kRings : 62 * 1024) / (2 * kWarps * 2 * T::kBytes), 2, 4);
  template <int kXSlots, int D>
  static constexpr int kStreamed = PackedLayout<T, NT, D, kXSlots>::kFixed;
  // The most that fits a block of compute capability 9.0, of 8 rows a block of 8.0.
  static constexpr int kRoom = NT == 1 ? kQuantisedMemory : 227 * 1024;
  static constexpr int kStreamDepth = kStreamed<3, 3> <= kRoom ? 3 : 2;
  static constexpr int kXSlots = kStreamed<4, kStreamDepth> <= kRoom ? 4 : 3;
  static_assert(kStreamed<kXSlots, kStreamDepth> <= kRoom);

  static int whole_bytes(int rows, int cols) {
    return PackedLayout<T, NT, kDepth, 0>::kFixed + NT * packed_room(rows) * packed_units(cols) * kPackedUnit;
  }
  static bool fits_whole(int rows, int cols) { return whole_bytes(rows, cols) <= shared_memory_limit(); }
  static bool streams() { return kStreamed<kXSlots, kStreamDepth> <= shared_memory_limit(); }

  static void launch(typename E::Params params, cudaStream_t stream) {
    if (!params.in.packed) params.in.packed = launch_pack(params.in, params.rows, params.cols, stream);
    const bool once = params.rows > 8 && E::tiles(params) <= multiprocessors() && streams();
    if (fits_whole(params.rows, params.cols) && !once) {
      launch_packed<T, E, NT, kDepth, 0>(params, whole_bytes(params.rows, params.cols), stream);
    } else {
      launch_packed<T, E, NT, kStreamDepth, kXSlots>(params, kStreamed<kXSlots, kStreamDepth>, stream);
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
