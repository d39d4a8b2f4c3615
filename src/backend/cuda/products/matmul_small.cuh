// The skinny products of one quantised type on devices whose blocks have less than kQuantisedMemory of shared memory
// (compute capability 8.6, 8.9 and 12: 99 KiB). The kernel is that of the others, and so are a row's bits; there is
// less on its way, which is enough for memory of a quarter of the rate, and no more than 8 rows are multiplied by a
// launch.
#pragma once

#include "backend/cuda/products/matmul_quantised.cuh"

namespace tidal::cuda::skinny {

/// Bytes of W on their way with one row: as many as leave room for x of 15,000 columns.
inline constexpr int kSmallRings = 48 * 1024;

/// One row, packed by every block for itself; two groups, since they hide what codes take to become products.
template <class T, class E>
struct SmallOne {
  using W = TileUnits<T, true>;
  static constexpr int kDepth = depth_of<W>(kSmallRings);
  static_assert(kDepth > 0 && Layout<W, E::kM, 1, kDepth, false>::kFixed <= kSmallFixed);

  static bool fits(int cols) { return shared_bytes<W, E, 1, kDepth, false>(1, cols) <= shared_memory_limit(); }
  static void launch(const typename E::Params& params, cudaStream_t stream) {
    launch_variant<W, E, 1, kDepth, false>(params, stream);
  }
};

/// Up to 8 rows, packed, a unit of x with every unit of W; one group, since each warp has 8 rows of x for itself.
template <class T, class E>
struct SmallSeveral {
  using W = TileUnits<T, false, 1>;
  template <int kDepth>
  static constexpr int kFixed = Layout<W, E::kM, 1, kDepth, true>::kFixed;
  static constexpr int kDepth = kFixed<3> <= kLeastSharedMemory ? 3 : 2;
  static_assert(kFixed<kDepth> <= kLeastSharedMemory);

  static void launch(const typename E::Params& params, cudaStream_t stream) {
    launch_variant<W, E, 1, kDepth, true>(params, stream);
  }
};

template <class T, class E>
void launch_few(typename E::Params params, cudaStream_t stream) {
  // A row of float32 always fits: small_takes_floats() was asked.
  if (params.rows == 1 && !params.in.packed && (params.in.x || SmallOne<T, E>::fits(params.cols))) {
    return SmallOne<T, E>::launch(params, stream);
  }
  if (!params.in.packed) params.in.packed = launch_pack(params.in, params.rows, params.cols, stream);
  SmallSeveral<T, E>::launch(params, stream);
}

template <class T, class E>
void launch_small(const typename E::Params& params, cudaStream_t stream) {
  // What there is room for is packed at once.
  launch_by(kQuantisedRows, params, [&](typename E::Params most) {
    if (!most.in.packed && most.rows > kSmallRows) {
      most.in.packed = launch_pack(most.in, most.rows, most.cols, stream);
    }
    launch_by(kSmallRows, most, [&](const typename E::Params& part) { launch_few<T, E>(part, stream); });
  });
}

template <class T>
void SmallQuantised<T>::launch(const SkinnyRows& params, cudaStream_t stream) {
  launch_small<T, RowsEpilogue<1>>(params, stream);
}
template <class T>
void SmallQuantised<T>::launch(const SkinnyGateUp& params, cudaStream_t stream) {
  launch_small<T, GateUpEpilogue>(params, stream);
}
template <class T>
void SmallQuantised<T>::launch(const SkinnyQkv& params, cudaStream_t stream) {
  launch_small<T, QkvEpilogue>(params, stream);
}

}  // namespace tidal::cuda::skinny
