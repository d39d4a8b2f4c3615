#include "backend/cuda/products/matmul_skinny.h"

#include <algorithm>

#include "backend/cuda/products/matmul_epilogues.cuh"
#include "backend/cuda/runtime/device.h"

namespace tidal::cuda {
namespace {

using skinny::GateUpEpilogue;
using skinny::GateUpPairs;
using skinny::Layout;
using skinny::QkvEpilogue;
using skinny::RowsEpilogue;

/// Shared memory of a variant with `rows` rows, in bytes.
template <class E, int NT, int D, bool kStream>
int shared_bytes(int rows, int cols) {
  const int fixed = Layout<E::kM, NT, D, kStream>::kFixed;
  return kStream ? fixed : fixed + rows * skinny::x_stride(skinny::units_of(cols)) * 2;
}

template <class E, int NT, int D, bool kStream>
void launch_variant(const typename E::Params& params, cudaStream_t stream) {
  const auto kernel = skinny::skinny_kernel<E, NT, D, kStream>;
  static const cudaError_t allowed = skinny::allow_shared_memory(reinterpret_cast<const void*>(kernel));
  check(allowed, "a skinny product");
  const int tiles = E::tiles(params);
  // No multiprocessor gets two blocks: they could be of one product and leave another multiprocessor idle.
  const int bytes =
      std::max(shared_bytes<E, NT, D, kStream>(params.rows, params.cols), shared_memory_limit() / 2 + 1024);
  launch("a skinny product", Start::Early, kernel, dim3(std::min(tiles, multiprocessors())), dim3(kRowThreads),
         static_cast<size_t>(bytes), stream, params, tiles, skinny::units_of(params.cols));
}

/// x whole in shared memory, where it fits and is used for more than one tile; a piece of x with every piece of W
/// otherwise.
template <class Resident, class Streaming, int NT, int D>
void launch_rows(const typename Resident::Params& params, cudaStream_t stream) {
  const auto fits = [&]<int kDepth>(std::integral_constant<int, kDepth>) {
    return shared_bytes<Resident, NT, kDepth, false>(params.rows, params.cols) <= shared_memory_limit();
  };
  if constexpr (NT == 1) {
    if (fits(std::integral_constant<int, 10>{})) return launch_variant<Resident, NT, 10, false>(params, stream);
    if (fits(std::integral_constant<int, 8>{})) return launch_variant<Resident, NT, 8, false>(params, stream);
  }
  const bool once = params.rows > 8 && Streaming::tiles(params) <= multiprocessors();
  if (params.in.x || (fits(std::integral_constant<int, D>{}) && !once)) {
    launch_variant<Resident, NT, D, false>(params, stream);
  } else {
    launch_variant<Streaming, NT, 4, true>(params, stream);
  }
}

template <class Params>
Params from_row(Params params, int first, int rows) {
  params.rows = rows;
  if (params.in.rounded) params.in.rounded += static_cast<int64_t>(first) * params.cols;
  if (params.in.squares) params.in.squares += static_cast<int64_t>(first) * ((params.cols + 15) / 16);
  if (params.in.factors) params.in.factors += first;
  return params;
}
void move(SkinnyRows& p, int first) {
  p.y += static_cast<int64_t>(first) * p.w_rows;
  if (!p.next.rounded) return;
  p.next.rounded += static_cast<int64_t>(first) * p.w_rows;
  p.next.squares += static_cast<int64_t>(first) * ((p.w_rows + 15) / 16);
}
void move(SkinnyGateUp& p, int first) { p.hidden += static_cast<int64_t>(first) * p.ffn; }
void move(SkinnyQkv& p, int first) {
  p.q += static_cast<int64_t>(first) * p.q_width;
  if (p.k_raw) p.k_raw += static_cast<int64_t>(first) * p.kv_width;
  if (p.v_raw) p.v_raw += static_cast<int64_t>(first) * p.kv_width;
  if (p.rope.angles) p.rope.angles += static_cast<int64_t>(first) * (p.rope.dims / 2);
  if (p.rope.slots) p.rope.slots += first;
}

/// `One` up to 8 rows, the others for more.
template <class One, class Resident, class Streaming>
void launch_all(const typename Resident::Params& params, cudaStream_t stream) {
  const bool four = shared_bytes<Streaming, 4, 4, true>(kSkinnyRows, params.cols) <= shared_memory_limit();
  const int most = four ? kSkinnyRows : kSkinnyRows / 2;
  for (int first = 0; first < params.rows;) {
    const int rows = std::min(params.rows - first, most);
    auto part = from_row(params, first, rows);
    move(part, first);
    first += rows;
    if (rows <= 8) {
      launch_rows<One, Streaming, 1, 5>(part, stream);
    } else if (rows <= 16) {
      launch_rows<Resident, Streaming, 2, 4>(part, stream);
    } else {
      launch_rows<Resident, Streaming, 4, 4>(part, stream);
    }
  }
}

}  // namespace

bool skinny_takes_floats(int rows, int cols) {
  return rows <= kFusedRows && shared_bytes<GateUpEpilogue, 1, 5, false>(rows, cols) <= shared_memory_limit();
}
void launch_skinny_rows(const SkinnyRows& params, cudaStream_t stream) {
  launch_all<RowsEpilogue<1>, RowsEpilogue<1>, RowsEpilogue<2>>(params, stream);
}
void launch_skinny_gate_up(const SkinnyGateUp& params, cudaStream_t stream) {
  launch_all<GateUpEpilogue, GateUpPairs, GateUpPairs>(params, stream);
}
void launch_skinny_qkv(const SkinnyQkv& params, cudaStream_t stream) {
  launch_all<QkvEpilogue, QkvEpilogue, QkvEpilogue>(params, stream);
}

}  // namespace tidal::cuda
