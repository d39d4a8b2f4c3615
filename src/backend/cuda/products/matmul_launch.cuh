// Launching a skinny product of one kind of matrices, whatever the rows.
#pragma once

#include <algorithm>

#include "backend/cuda/products/matmul_epilogues.cuh"
#include "backend/cuda/runtime/device.h"

namespace tidal::cuda::skinny {

/// Shared memory of a variant with `rows` rows, in bytes.
template <class W, class E, int NT, int D, bool kStream>
int shared_bytes(int rows, int cols) {
  const int fixed = Layout<W, E::kM, NT, D, kStream>::kFixed;
  return kStream ? fixed : fixed + rows * W::x_row(units_of<W>(cols));
}

template <class W, class E, int NT, int D, bool kStream>
void launch_variant(const typename E::Params& params, cudaStream_t stream) {
  const auto kernel = skinny_kernel<W, E, NT, D, kStream>;
  static const cudaError_t allowed = allow_shared_memory(reinterpret_cast<const void*>(kernel));
  check(allowed, "a skinny product");
  const int tiles = E::tiles(params), blocks = (tiles + W::kGroups - 1) / W::kGroups;
  // No multiprocessor gets two blocks: they could be of one product and leave another multiprocessor idle.
  const int bytes =
      std::max(shared_bytes<W, E, NT, D, kStream>(params.rows, params.cols), shared_memory_limit() / 2 + 1024);
  launch("a skinny product", Start::Early, kernel, dim3(std::min(blocks, multiprocessors())),
         dim3(W::kGroups * kRowThreads), static_cast<size_t>(bytes), stream, params, tiles, units_of<W>(params.cols));
}

template <class Params>
Params from_row(Params params, int first, int rows) {
  params.rows = rows;
  if (params.in.rounded) params.in.rounded += static_cast<int64_t>(first) * params.cols;
  if (params.in.squares) params.in.squares += static_cast<int64_t>(first) * ((params.cols + 15) / 16);
  if (params.in.packed) params.in.packed += skinny_packed_bytes(first, params.cols);
  if (params.in.factors) params.in.factors += first;
  return params;
}
inline void move(SkinnyRows& p, int first) {
  p.y += static_cast<int64_t>(first) * p.w_rows;
  if (p.hidden) p.hidden += static_cast<int64_t>(first) * p.w_rows;
  if (!p.next.rounded) return;
  p.next.rounded += static_cast<int64_t>(first) * p.w_rows;
  p.next.squares += static_cast<int64_t>(first) * ((p.w_rows + 15) / 16);
}
inline void move(SkinnyGateUp& p, int first) { p.hidden += static_cast<int64_t>(first) * p.ffn; }
inline void move(SkinnyQkv& p, int first) {
  p.q += static_cast<int64_t>(first) * p.q_width;
  if (p.k_raw) p.k_raw += static_cast<int64_t>(first) * p.kv_width;
  if (p.v_raw) p.v_raw += static_cast<int64_t>(first) * p.kv_width;
  if (p.rope.angles) p.rope.angles += static_cast<int64_t>(first) * (p.rope.dims / 2);
  if (p.rope.slots) p.rope.slots += first;
}

/// Every row once, at most `most` of them by a launch: launch_part(params of these).
template <class Params, class Launch>
void launch_by(int most, const Params& params, Launch&& launch_part) {
  for (int first = 0; first < params.rows;) {
    const int rows = std::min(params.rows - first, most);
    auto part = from_row(params, first, rows);
    move(part, first);
    first += rows;
    launch_part(part);
  }
}

}  // namespace tidal::cuda::skinny
