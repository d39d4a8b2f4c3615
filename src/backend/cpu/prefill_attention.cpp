#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "backend/cpu/attention.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kTileRows = 512;  // query rows (tokens x heads of a group) of one task: scores and sums stay in L2
constexpr int kSpan = 256;      // positions per matrix product

// One thread's memory for one tile: Q [rows, dim], K and V [span, dim], P [rows, span] in the products' element type,
// S [rows, span] and O [rows, dim] in float32.
class Tile {
 public:
  Tile(const GemmElements& elements, int rows, int dim)
      : q(elements.bytes() * rows * dim),
        k(elements.bytes() * kSpan * dim),
        v(k.size()),
        p(elements.bytes() * rows * kSpan),
        s(static_cast<size_t>(rows) * kSpan),
        o(static_cast<size_t>(rows) * dim),
        maximum(rows),
        sum(rows),
        row(dim) {}

  std::vector<std::byte> q, k, v, p;
  std::vector<float> s, o, maximum, sum, row;
};

// Copies positions [begin, begin + kSpan) of one KV head; positions from `end` on become zeros.
void pack_span(const Chunk& chunk, KvLayer kv, int kv_head, int begin, int end, const GemmElements& elements, Tile& t) {
  const int dim = kv.head_dim;
  const size_t row_bytes = elements.bytes() * dim;
  for (int i = 0; i < kSpan; ++i) {
    std::byte* k = t.k.data() + row_bytes * i;
    std::byte* v = t.v.data() + row_bytes * i;
    const int position = begin + i;
    if (position >= end) {
      std::memset(k, 0, row_bytes);
      std::memset(v, 0, row_bytes);
      continue;
    }
    const Bf16* source = kv.tile(chunk.blocks[position / kBlockTokens], kv_head) +
                         static_cast<int64_t>(position % kBlockTokens) * 2 * dim;
    if (elements.bf16()) {
      std::memcpy(k, source, row_bytes);
      std::memcpy(v, source + dim, row_bytes);
    } else {
      for (int d = 0; d < dim; ++d) {
        reinterpret_cast<float*>(k)[d] = to_float(source[d]);
        reinterpret_cast<float*>(v)[d] = to_float(source[dim + d]);
      }
    }
  }
}

// Tokens [first, first + count) of the chunk against one KV head.
void attend_tile(const Chunk& chunk, Rows q, KvLayer kv, int kv_head, int group, int first, int count, int tile_rows,
                 Rows out, GemmKernel& kernel, const GemmElements& elements, Tile& t) {
  const int dim = kv.head_dim;
  const int rows = count * group;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const size_t row_bytes = elements.bytes() * dim;
  std::fill(t.q.begin(), t.q.end(), std::byte{0});
  for (int r = 0; r < rows; ++r) {
    const float* head = q.row(chunk.first_row + first + r / group) + (kv_head * group + r % group) * int64_t{dim};
    elements.store(head, dim, t.q.data() + row_bytes * r);
  }
  std::fill(t.o.begin(), t.o.end(), 0.0f);
  std::fill(t.maximum.begin(), t.maximum.end(), -std::numeric_limits<float>::infinity());
  std::fill(t.sum.begin(), t.sum.end(), 0.0f);

  const int end = chunk.position + first + count;
  for (int begin = 0; begin < end; begin += kSpan) {
    pack_span(chunk, kv, kv_head, begin, end, elements, t);
    // Whole tiles and spans even at the edges: one shape each, so oneDNN generates its code once.
    kernel.rows_by_rows(tile_rows, kSpan, dim, t.q.data(), t.k.data(), t.s.data(), kSpan);
    for (int r = 0; r < rows; ++r) {
      const int context = chunk.position + first + r / group + 1;
      const int visible = std::clamp(context - begin, 0, kSpan);
      float* scores = t.s.data() + static_cast<int64_t>(r) * kSpan;
      std::fill(scores + visible, scores + kSpan, 0.0f);
      if (visible > 0) {
        const float shrink = softmax_step(scores, visible, scale, t.maximum[r], t.sum[r]);
        if (shrink != 1.0f) scale_by(shrink, dim, t.o.data() + static_cast<int64_t>(r) * dim);
      }
      elements.store(scores, kSpan, t.p.data() + elements.bytes() * kSpan * r);
    }
    kernel.accumulate(tile_rows, dim, kSpan, t.p.data(), kSpan, t.v.data(), t.o.data());
  }
  for (int r = 0; r < rows; ++r) {
    float* to = out.row(chunk.first_row + first + r / group) + (kv_head * group + r % group) * int64_t{dim};
    for (int d = 0; d < dim; ++d) to[d] = t.o[static_cast<int64_t>(r) * dim + d] / t.sum[r];
  }
}

}  // namespace

void prefill_attention(const Chunk& chunk, Rows q, KvLayer kv, int group, Rows out, Gemm& gemm, int threads) {
  const int tile_tokens = std::max(1, kTileRows / group);
  const int tile_rows = tile_tokens * group;
  const int tiles = (chunk.rows + tile_tokens - 1) / tile_tokens;
  std::exception_ptr error;
#pragma omp parallel num_threads(threads)
  {
    Tile tile(gemm.elements(), tile_rows, kv.head_dim);
    // The last tokens see the most context: start with them, so that no thread is left with a long task at the end.
#pragma omp for schedule(dynamic)
    for (int task = 0; task < tiles * kv.kv_heads; ++task) {
      try {
        const int first = (tiles - 1 - task / kv.kv_heads) * tile_tokens;
        const int count = std::min(tile_tokens, chunk.rows - first);
        attend_tile(chunk, q, kv, task % kv.kv_heads, group, first, count, tile_rows, out,
                    gemm.kernel(omp_get_thread_num()), gemm.elements(), tile);
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace tidal
