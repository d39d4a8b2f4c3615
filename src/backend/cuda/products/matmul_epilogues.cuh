// What is done with the sums of a skinny product: matmul_skinny.cuh says what an epilogue has.
#pragma once

#include "backend/cuda/products/activation.cuh"
#include "backend/cuda/products/matmul_skinny.cuh"

namespace tidal::cuda::skinny {

// Epilogues say which sums are fused: left to itself the compiler chooses otherwise for one row than for 32, and a
// row's bits would depend on its company.

__device__ inline __nv_bfloat16 gated(Activation activation, float gate, float up) {
  return __float2bfloat16_rn(activated(activation, gate, up));
}

/// Of epilogues whose blocks all have the whole grid's part, and which know W before they start.
template <class ParamsOf>
struct WholeGrid {
  using Params = ParamsOf;
  static constexpr bool kWaits = false;
  __device__ static const Params& here(const Params& p) { return p; }
};

/// Products that are stored or added, bias included. 16 threads have the rows of a tile for one token.
template <int M>
struct RowsEpilogue : WholeGrid<SkinnyRows> {
  static constexpr int kM = M, kItems = M;
  struct Operands {
    float bias, before, norm;  // before: y as it is
  };
  /// What a thread has: row `row` of W, tile `tile` of 16, token `token`.
  template <int NT>
  struct Place {
    int row, tile, token;
    bool live;
    __device__ Place(const Params& p, int tiles, int index) {
      tile = tiles * M + index / (128 * NT);
      row = tile * 16 + index % 16;
      token = index / 16 % (8 * NT);
      live = row < p.w_rows && token < p.rows;
    }
  };

  __host__ __device__ static int tiles(const Params& p) { return (p.w_rows + 16 * M - 1) / (16 * M); }
  __device__ static RowOf row(const Params& p, int tile, int m, int r) {
    // Rows behind the last one are computed from it and thrown away.
    return {p.w.data, min((tile * M + m) * 16 + r, p.w_rows - 1)};
  }
  __device__ static int sum_of(int index) {
    const int row = index % 16, token = index / 16 % 8;
    return index - index % 128 + row % 8 * 16 + token / 2 * 4 + row / 8 * 2 + token % 2;
  }
  template <int NT>
  __device__ static Operands load(const Params& p, int tile, int index) {
    const Place<NT> place(p, tile, index);
    Operands result{};
    if (!place.live) return result;
    if (p.bias) result.bias = __ldg(p.bias + place.row);
    if (p.add || p.hidden) result.before = __ldcg(p.y + static_cast<int64_t>(place.token) * p.w_rows + place.row);
    if (p.next.rounded) result.norm = __ldg(p.next.norm + place.row);
    return result;
  }
  template <int NT>
  __device__ static void store(const Params& p, int tile, int index, const float* sums, const float* factors,
                               const Operands& operands) {
    const Place<NT> place(p, tile, index);
    const int64_t at = static_cast<int64_t>(place.token) * p.w_rows + place.row;
    float result = 0;
    if (place.live) {
      const float product = __fmaf_rn(sums[0], factors[place.token], operands.bias);
      if (p.hidden) {
        p.hidden[at] = gated(p.activation, operands.before, product);
        return;
      }
      result = p.add ? operands.before + product : product;
      p.y[at] = result;
    }
    if (!p.next.rounded) return;
    const float squares = square_sum(result);
    if (!place.live) return;
    p.next.rounded[at] = __float2bfloat16_rn(__fmul_rn(result, operands.norm));
    if (place.row % 16 == 0)
      p.next.squares[static_cast<int64_t>(place.token) * ((p.w_rows + 15) / 16) + place.tile] = squares;
  }
};

/// 8 rows of gate and the same 8 of up in one tile: half as many columns of tiles, so that they go evenly into blocks.
struct GateUpEpilogue : WholeGrid<SkinnyGateUp> {
  static constexpr int kM = 1, kItems = 1;
  struct Operands {
    float bias;
  };

  __device__ static int sum_of(int index) { return index; }
  __host__ __device__ static int tiles(const Params& p) { return (p.ffn + 7) / 8; }
  __device__ static RowOf row(const Params& p, int tile, int, int r) {
    return {(r < 8 ? p.gate : p.up).data, min(tile * 8 + r % 8, p.ffn - 1)};
  }
  template <int NT>
  __device__ static Operands load(const Params& p, int tile, int index) {
    const Item<NT> item(index);
    const int row = tile * 8 + item.row % 8;
    const float* bias = item.row < 8 ? p.gate_bias : p.up_bias;
    return {bias && row < p.ffn ? __ldg(bias + row) : 0.0f};
  }
  template <int NT>
  __device__ static void store(const Params& p, int tile, int index, const float* sums, const float* factors,
                               const Operands& operands) {
    const Item<NT> item(index);
    const int row = tile * 8 + item.row % 8;
    const bool live = item.token < p.rows;
    const float value = __fmaf_rn(sums[0], live ? factors[item.token] : 0.0f, operands.bias);
    const float up = __shfl_xor_sync(0xffffffffu, value, 2);  // row + 8
    if (item.row >= 8 || row >= p.ffn || !live) return;
    p.hidden[static_cast<int64_t>(item.token) * p.ffn + row] = gated(p.activation, value, up);
  }
};

/// Tiles of 16 rows of gate and of up, worked on together: x is read once for both.
struct GateUpPairs : WholeGrid<SkinnyGateUp> {
  static constexpr int kM = 2, kItems = 1;
  struct Operands {
    float gate, up;
  };

  __device__ static int sum_of(int index) { return index; }
  __host__ __device__ static int tiles(const Params& p) { return (p.ffn + 15) / 16; }
  __device__ static RowOf row(const Params& p, int tile, int m, int r) {
    return {(m == 0 ? p.gate : p.up).data, min(tile * 16 + r, p.ffn - 1)};
  }
  template <int NT>
  __device__ static Operands load(const Params& p, int tile, int index) {
    const int row = tile * 16 + Item<NT>(index).row;
    if (row >= p.ffn) return {};
    return {p.gate_bias ? __ldg(p.gate_bias + row) : 0.0f, p.up_bias ? __ldg(p.up_bias + row) : 0.0f};
  }
  template <int NT>
  __device__ static void store(const Params& p, int tile, int index, const float* sums, const float* factors,
                               const Operands& operands) {
    const Item<NT> item(index);
    const int row = tile * 16 + item.row;
    if (row >= p.ffn || item.token >= p.rows) return;
    const float factor = factors[item.token];
    const float gate = __fmaf_rn(sums[0], factor, operands.gate), up = __fmaf_rn(sums[1], factor, operands.up);
    p.hidden[static_cast<int64_t>(item.token) * p.ffn + row] = gated(p.activation, gate, up);
  }
};

/// q, k and v, those of them that are there: raw, or rotated and appended. With rotation the two elements that are
/// rotated together lie in one tile, in lanes of one warp.
struct QkvEpilogue : WholeGrid<SkinnyQkv> {
  static constexpr int kM = 1, kItems = 1;

  __host__ __device__ static int tiles_of(const Params& p, int which) {
    return p.w[which].data ? ((which == 0 ? p.q_width : p.kv_width) + 15) / 16 : 0;
  }

  /// One tile of 16 rows of one of the three matrices.
  struct Place {
    int which, tile;    // of that matrix
    int head, in_head;  // its head and its tile in the head; with rotation only
    bool rotated;

    __device__ Place(const Params& p, int index) {
      const int q_tiles = tiles_of(p, 0), k_tiles = tiles_of(p, 1);
      which = index < q_tiles ? 0 : index < q_tiles + k_tiles ? 1 : 2;
      tile = index - (which == 0 ? 0 : which == 1 ? q_tiles : q_tiles + k_tiles);
      head = in_head = 0;
      rotated = false;
      if (!p.fused) return;
      const int head_tiles = p.rope.head_dim / 16;
      head = tile / head_tiles;
      in_head = tile % head_tiles;
      rotated = which < 2 && in_head < p.rope.dims / 16;
    }
    /// The row in the matrix (with rotation: in the head) of row r of the tile.
    __device__ int row(const Params& p, int r) const {
      if (!p.fused) return tile * 16 + r;
      if (!rotated || !p.rope.halves) return in_head * 16 + r;
      return in_head * 8 + r % 8 + (r < 8 ? 0 : p.rope.dims / 2);
    }
  };
  struct Operands {
    float bias;
    float2 angle;
    int slot;
  };

  __device__ static int sum_of(int index) { return index; }
  __host__ __device__ static int tiles(const Params& p) { return tiles_of(p, 0) + tiles_of(p, 1) + tiles_of(p, 2); }
  __device__ static RowOf row(const Params& p, int index, int, int r) {
    const Place place(p, index);
    const int row = place.head * (p.fused ? p.rope.head_dim : 0) + place.row(p, r);
    return {p.w[place.which].data, min(row, (place.which == 0 ? p.q_width : p.kv_width) - 1)};
  }
  template <int NT>
  __device__ static Operands load(const Params& p, int index, int item_index) {
    const Item<NT> item(item_index);
    const Place place(p, index);
    const int row = place.head * (p.fused ? p.rope.head_dim : 0) + place.row(p, item.row);
    Operands result{};
    if (item.token >= p.rows || row >= (place.which == 0 ? p.q_width : p.kv_width)) return result;
    if (p.bias[place.which]) result.bias = __ldg(p.bias[place.which] + row);
    if (place.rotated) {
      const int pair = place.in_head * 8 + (p.rope.halves ? item.row % 8 : item.row / 2);
      result.angle = __ldcg(p.rope.angles + static_cast<int64_t>(item.token) * (p.rope.dims / 2) + pair);
    }
    if (p.fused && place.which > 0) result.slot = __ldcg(p.rope.slots + item.token);
    return result;
  }
  template <int NT>
  __device__ static void store(const Params& p, int index, int item_index, const float* sums, const float* factors,
                               const Operands& operands) {
    const Item<NT> item(item_index);
    const Place place(p, index);
    const bool live = item.token < p.rows;
    float value = __fmaf_rn(sums[0], live ? factors[item.token] : 0.0f, operands.bias);
    if (place.rotated) {  // the same for a whole warp, so all lanes are here
      const int across = p.rope.halves ? 2 : 16;
      const float other = __shfl_xor_sync(0xffffffffu, value, across);
      const bool first = p.rope.halves ? item.row < 8 : item.row % 2 == 0;
      const float across_product = __fmul_rn(other, operands.angle.y);
      value = __fmaf_rn(value, operands.angle.x, first ? -across_product : across_product);
    }
    const int row = place.row(p, item.row);
    if (!live) return;
    if (place.which == 0) {
      const int at = place.head * (p.fused ? p.rope.head_dim : 0) + row;
      if (at < p.q_width) p.q[static_cast<int64_t>(item.token) * p.q_width + at] = value;
    } else if (!p.fused) {
      float* to = place.which == 1 ? p.k_raw : p.v_raw;
      if (row < p.kv_width) to[static_cast<int64_t>(item.token) * p.kv_width + row] = value;
    } else {
      const int dim = p.rope.head_dim, block = operands.slot / 64, offset = operands.slot % 64;
      const int64_t tile = (static_cast<int64_t>(block) * p.rope.kv_heads + place.head) * 64 + offset;
      p.rope.kv[tile * 2 * dim + (place.which == 2 ? dim : 0) + row] = __float2bfloat16_rn(value);
    }
  }
};

}  // namespace tidal::cuda::skinny
