#include "backend/cpu/prefill_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>

#include "backend/cpu/kv_rows.h"
#include "backend/cpu/rounded_rows.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kTileRows = 256;  // query rows (tokens x heads of a group) of one task: scores and sums stay in L2
constexpr int kSpan = 256;      // positions per matrix product
constexpr int kAhead = 2048;    // positions that are asked for before their turn, where K and V are in a file
// Rows and positions of a product at the edges are rounded up to this, so that oneDNN generates code for few shapes.
constexpr int kStep = kBlockTokens;
static_assert(kTileRows % kStep == 0 && kSpan % kStep == 0);

constexpr int round_up(int count) { return (count + kStep - 1) / kStep * kStep; }

// One thread's memory for one tile: Q [rows, dim], K and V [span, dim] in the products' element type, S [rows, span]
// and O [rows, dim] in float32. The softmax weights of a row take the place of its scores.
class Tile {
 public:
  Tile(const GemmElements& elements, int dim, Gemm& gemm) {
    const size_t q_bytes = elements.bytes() * kTileRows * dim, k_bytes = elements.bytes() * kSpan * dim;
    const size_t s_bytes = sizeof(float) * kTileRows * kSpan, o_bytes = sizeof(float) * kTileRows * dim;
    q = gemm.scratch(q_bytes + 2 * k_bytes + s_bytes + o_bytes + 2 * sizeof(float) * kTileRows);
    k = q + q_bytes;
    v = k + k_bytes;
    s = reinterpret_cast<float*>(v + k_bytes);
    o = s + kTileRows * kSpan;
    maximum = o + static_cast<size_t>(kTileRows) * dim;
    sum = maximum + kTileRows;
  }

  std::byte *q, *k, *v;
  float *s, *o, *maximum, *sum;
};

// What the tiles of one chunk have in common. Query rows are counted token by token, the heads of the group within.
struct Task {
  const Chunk& chunk;
  LayerOptions options;
  Rows q;
  KvLayer kv;
  int group;
  Rows out;
  const GemmElements& elements;
  const KvRequests& requests;

  int rows() const { return chunk.rows * group; }
  // Query row `row` attends to positions [first, end).
  int end(int row) const { return chunk.position + row / group + 1; }
  int first(int row) const { return options.window > 0 ? std::max(0, end(row) - options.window) : 0; }
  float* of(Rows all, int row, int kv_head) const {
    return all.row(chunk.first_row + row / group) + (kv_head * group + row % group) * int64_t{kv.head_dim};
  }
};

// One that is not of bf16, to where element `at` of K and V is.
void read_row(const Task& task, const std::byte* row, size_t at, const Tile& t) {
  const KvRowLayout layout = task.kv.row_layout();
  if (layout.type == KvType::F32) {
    const auto* const floats = reinterpret_cast<const float*>(row);
    const size_t first = task.elements.bytes() * at;
    task.elements.store(floats, layout.head_dim, t.k + first);
    task.elements.store(floats + layout.head_dim, layout.head_dim, t.v + first);
    return;
  }
  if (task.elements.bf16()) {
    read_q8(layout, row, false, reinterpret_cast<Bf16*>(t.k) + at);
    read_q8(layout, row, true, reinterpret_cast<Bf16*>(t.v) + at);
  } else {
    read_q8(layout, row, false, reinterpret_cast<float*>(t.k) + at);
    read_q8(layout, row, true, reinterpret_cast<float*>(t.v) + at);
  }
}

// Copies positions [begin, begin + count) of one KV head; positions from `end` on become zeros.
void pack_span(const Task& task, int kv_head, int begin, int count, int end, const Tile& t) {
  constexpr int kPiece = 16;  // every head size is a multiple of this
  const int dim = task.kv.head_dim;
  const std::span<const BlockId> blocks = task.chunk.blocks_of(task.kv);
  for (int i = 0; i < count; ++i) {
    const int position = begin + i;
    const size_t at = static_cast<size_t>(dim) * i;
    if (position >= end) {
      const size_t bytes = task.elements.bytes() * dim * (count - i);
      std::memset(t.k + task.elements.bytes() * at, 0, bytes);
      std::memset(t.v + task.elements.bytes() * at, 0, bytes);
      return;
    }
    const std::byte* row = task.kv.row(blocks[position / kBlockTokens], kv_head, position % kBlockTokens);
    const auto* from = reinterpret_cast<const Bf16*>(row);
    if (task.kv.type != KvType::Bf16) {
      read_row(task, row, at, t);
    } else if (task.elements.bf16()) {
      auto* k = reinterpret_cast<Bf16*>(t.k) + at;
      auto* v = reinterpret_cast<Bf16*>(t.v) + at;
      for (int d = 0; d < dim; d += kPiece) {
        std::memcpy(k + d, from + d, sizeof(Bf16) * kPiece);
        std::memcpy(v + d, from + dim + d, sizeof(Bf16) * kPiece);
      }
    } else {
      for (int d = 0; d < dim; ++d) {
        reinterpret_cast<float*>(t.k)[at + d] = to_float(from[d]);
        reinterpret_cast<float*>(t.v)[at + d] = to_float(from[dim + d]);
      }
    }
  }
}

// The scores [columns] of query row `index` of the tile become softmax weights, 0 outside of [first, visible); what it
// summed before shrinks.
void weigh_row(const Task& task, const Tile& t, int index, int first, int visible, int columns, float scale) {
  const int dim = task.kv.head_dim;
  float* scores = t.s + index * kSpan;
  float shrink = 1;
  if (task.options.cap > 0 && visible > first) cap_by(task.options.cap, visible - first, scores + first);
  std::fill_n(scores, first, -std::numeric_limits<float>::infinity());
  if (visible <= first) {
    std::fill_n(scores, columns, 0.0f);
  } else if (task.elements.bf16()) {
    auto* weights = reinterpret_cast<Bf16*>(scores);
    if (has_rounded_rows()) {
      shrink = softmax_step_to_bf16(scores, visible, columns, scale, t.maximum[index], t.sum[index], weights);
    } else {
      shrink = softmax_step(scores, visible, scale, t.maximum[index], t.sum[index]);
      std::fill(scores + visible, scores + columns, 0.0f);
      floats_to_bf16(scores, columns, weights);
    }
  } else {
    shrink = softmax_step(scores, visible, scale, t.maximum[index], t.sum[index]);
    std::fill(scores + visible, scores + columns, 0.0f);
  }
  if (shrink != 1.0f) scale_by(shrink, dim, t.o + static_cast<int64_t>(index) * dim);
}

// Query rows [first, first + count) against one KV head.
void attend_tile(const Task& task, int kv_head, int first, int count, GemmKernel& kernel, const Tile& t) {
  const int dim = task.kv.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const size_t element = task.elements.bytes();
  const int rows = round_up(count);
  for (int r = 0; r < count; ++r) {
    task.elements.store(task.of(task.q, first + r, kv_head), dim, t.q + element * dim * r);
  }
  std::memset(t.q + element * dim * count, 0, element * dim * (rows - count));
  std::fill_n(t.o, static_cast<size_t>(rows) * dim, 0.0f);
  for (int r = 0; r < count; ++r) {
    // A sink is a score that was there before, of no value.
    const float* const sink_logits = task.options.sink_logits;
    t.maximum[r] = sink_logits ? sink_logits[kv_head * task.group + (first + r) % task.group]
                               : -std::numeric_limits<float>::infinity();
    t.sum[r] = sink_logits ? 1.0f : 0.0f;
  }

  const int end = task.end(first + count - 1);
  int begin = task.first(first) / kBlockTokens * kBlockTokens;
  if (task.requests) task.requests.ask_for(task.chunk, kv_head, begin, begin + kAhead);
  for (; begin < end; begin += kSpan) {
    if (task.requests) task.requests.ask_for(task.chunk, kv_head, begin + kAhead, begin + kAhead + kSpan);
    const int columns = std::min(kSpan, round_up(end - begin));
    pack_span(task, kv_head, begin, columns, end, t);
    kernel.rows_by_rows(rows, columns, dim, t.q, t.k, t.s, kSpan);
    for (int r = 0; r < count; ++r) {
      const auto in_span = [&](int position) { return std::clamp(position - begin, 0, columns); };
      weigh_row(task, t, r, in_span(task.first(first + r)), in_span(task.end(first + r)), columns, scale);
    }
    const int stride = kSpan * static_cast<int>(sizeof(float) / element);
    kernel.accumulate(rows, dim, columns, reinterpret_cast<const std::byte*>(t.s), stride, t.v, t.o);
  }
  for (int r = 0; r < count; ++r) {
    float* to = task.of(task.out, first + r, kv_head);
    for (int d = 0; d < dim; ++d) to[d] = t.o[static_cast<int64_t>(r) * dim + d] / t.sum[r];
  }
}

}  // namespace

void prefill_attention(const Chunk& chunk, LayerOptions options, Rows q, KvLayer kv, int group, Rows out, Gemm& gemm,
                       const KvRequests& requests, int threads) {
  const Task task{chunk, options, q, kv, group, out, gemm.elements(), requests};
  const int tiles = (task.rows() + kTileRows - 1) / kTileRows;
  std::exception_ptr error;
  // The last tokens see the most context: start with them, so that no thread is left with a long tile at the end.
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int i = 0; i < tiles * kv.kv_heads; ++i) {
    try {
      const Tile tile(gemm.elements(), kv.head_dim, gemm);
      const int first = (tiles - 1 - i / kv.kv_heads) * kTileRows;
      const int count = std::min(kTileRows, task.rows() - first);
      attend_tile(task, i % kv.kv_heads, first, count, gemm.kernel(omp_get_thread_num()), tile);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace tidal
