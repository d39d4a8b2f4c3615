// The skinny product where the kernel before has chosen what of W is read: every row of x has blocks of its own.
#pragma once

#include <algorithm>
#include <string>

#include "backend/cuda/experts/chosen_products.h"
#include "backend/cuda/products/matmul_quantised.cuh"
#include "backend/cuda/products/matmul_units.cuh"

namespace tidal::cuda::skinny {

/// A tile has 8 rows of gate and the same 8 of up of one expert.
struct ChosenGateUpEpilogue {
  using Params = ChosenGateUp;
  static constexpr int kM = 1, kItems = 1;
  static constexpr bool kWaits = true;
  struct Operands {
    float scale, bias, weight, down_scale;
  };

  __device__ static Params here(Params p) {
    const int64_t row = blockIdx.y;
    if (p.in.x) p.in.x += row * p.cols;
    if (p.in.rounded) p.in.rounded += row * p.cols;
    if (p.in.squares) p.in.squares += row * ((p.cols + 15) / 16);
    p.choices.experts += row * p.used;
    p.choices.weights += row * p.used;
    p.hidden += row * p.used * padded(p);
    p.rows = 1;
    return p;
  }
  __host__ __device__ static int padded(const Params& p) { return padded_ffn(p.ffn); }
  __host__ __device__ static int tiles(const Params& p) { return p.used * (padded(p) / 8); }
  /// Of a tile: which of the chosen experts, and its first row there.
  struct Place {
    int choice, first;
    __device__ Place(const Params& p, int tile) {
      const int each = padded(p) / 8;
      choice = tile / each;
      first = (tile - choice * each) * 8;
    }
  };
  __device__ static RowOf row(const Params& p, int tile, int, int r) {
    const Place place(p, tile);
    const int expert = __ldcg(p.choices.experts + place.choice);
    return {(r < 8 ? p.gate : p.up).data, expert * p.expert_rows + min(place.first + r % 8, p.ffn - 1)};
  }
  __device__ static int sum_of(int index) { return index; }
  template <int NT>
  __device__ static Operands load(const Params& p, int tile, int index) {
    const Place place(p, tile);
    const int expert = __ldcg(p.choices.experts + place.choice);
    const Item<NT> item(index);
    const bool gate = item.row < 8;
    const float *scales = gate ? p.gate_scales : p.up_scales, *biases = gate ? p.gate_biases : p.up_biases;
    const int64_t row = static_cast<int64_t>(expert) * p.ffn + min(place.first + item.row % 8, p.ffn - 1);
    return {scales ? __ldg(scales + expert) : 1.0f, biases ? __ldg(biases + row) : 0.0f,
            __ldcg(p.choices.weights + place.choice), p.down_scales ? __ldg(p.down_scales + expert) : 1.0f};
  }
  template <int NT>
  __device__ static void store(const Params& p, int tile, int index, const float* sums, const float* factors,
                               const Operands& operands) {
    const Item<NT> item(index);
    const Place place(p, tile);
    const float value = __fadd_rn(__fmul_rn(__fmul_rn(sums[0], factors[0]), operands.scale), operands.bias);
    const float up = __shfl_xor_sync(0xffffffffu, value, 2);  // row + 8
    if (item.row >= 8 || item.token > 0) return;
    const int at = place.first + item.row;
    const float result = activated(p.activation, value, up) * operands.weight * operands.down_scale;
    p.hidden[place.choice * padded(p) + at] = __float2bfloat16_rn(at < p.ffn ? result : 0.0f);
  }
};

/// W is the chosen experts' matrices one beside the other.
struct ChosenDownEpilogue : RowsEpilogue<1> {
  using Params = ChosenDown;
  static constexpr bool kWaits = true;

  __device__ static Params here(Params p) {
    const int64_t row = blockIdx.y;
    p.in.rounded += row * p.cols;
    p.choices.experts += row * p.used;
    p.choices.weights += row * p.used;
    p.y += row * p.w_rows;
    if (p.next.rounded) {
      p.next.rounded += row * p.w_rows;
      p.next.squares += row * ((p.w_rows + 15) / 16);
    }
    p.rows = 1;
    return p;
  }
  template <int NT>
  __device__ static Operands load(const Params& p, int tile, int index) {
    Operands result = RowsEpilogue<1>::load<NT>(p, tile, index);
    const Place<NT> place(p, tile, index);
    if (!p.biases || !place.live) return result;
    for (int k = 0; k < p.used; ++k) {
      const int64_t expert = __ldcg(p.choices.experts + k);
      result.bias =
          __fmaf_rn(__ldcg(p.choices.weights + k), __ldg(p.biases + expert * p.w_rows + place.row), result.bias);
    }
    return result;
  }
};

/// Where matrices W of experts lie, from one unit of columns to the next.
template <class W>
struct Joined;

template <class T>
struct Joined<TileUnits<T, true, 1>> : TileUnits<T, true, 1> {
  using Base = TileUnits<T, true, 1>;
  struct Aim {
    const char *low, *high;  // in the first expert
    int64_t expert_bytes;
    int expert, units;  // the lane's of the chosen ones; of an expert
    template <class Row>
    __device__ void at(const ChosenDown& p, Row&& row, int lane, int) {
      units = (p.ffn + Base::kUnit - 1) / Base::kUnit;
      const int64_t across = static_cast<int64_t>(units) * T::kBytes;
      expert_bytes = static_cast<int64_t>(p.w_rows) / kTileRows * across;
      const RowOf first = row(0), second = row(8);
      low = reinterpret_cast<const char*>(first.matrix) + first.row / kTileRows * across + lane * 16;
      high = reinterpret_cast<const char*>(second.matrix) + second.row / kTileRows * across + lane * 16;
      expert = lane < p.used ? __ldcg(p.choices.experts + lane) : 0;
    }
  };
  __device__ static void copy(char* slot, Aim& aim, int unit, int cols, int lane) {
    const int choice = unit / aim.units, own = unit - choice * aim.units;
    const int64_t from = __shfl_sync(0xffffffffu, aim.expert, choice) * aim.expert_bytes + own * T::kBytes;
    Base::copy_tiles(slot, aim.low + from, aim.high + from, lane);
  }
};

template <>
struct Joined<Bf16Units> : Bf16Units {
  struct Aim {
    const __nv_bfloat16 *low, *high;  // rows g and g + 8 of the first expert
    int64_t expert_elements;
    int expert, units, ffn;
    template <class Row>
    __device__ void at(const ChosenDown& p, Row&& row, int lane, int) {
      ffn = p.ffn;
      units = padded_ffn(p.ffn) / Bf16Units::kUnit;
      expert_elements = static_cast<int64_t>(p.w_rows) * ffn;
      const int g = lane / 4;
      const RowOf first = row(g), second = row(g + 8);
      low = reinterpret_cast<const __nv_bfloat16*>(first.matrix) + static_cast<int64_t>(first.row) * ffn;
      high = reinterpret_cast<const __nv_bfloat16*>(second.matrix) + static_cast<int64_t>(second.row) * ffn;
      expert = lane < p.used ? __ldcg(p.choices.experts + lane) : 0;
    }
  };
  __device__ static void copy(char* slot, const Aim& aim, int unit, int, int lane) {
    const int choice = unit / aim.units, own = unit - choice * aim.units;
    const int64_t from = __shfl_sync(0xffffffffu, aim.expert, choice) * aim.expert_elements;
    Bf16Units::copy(slot, {aim.low + from, aim.high + from}, own, aim.ffn, lane);
  }
};

/// Bytes of W on their way on devices of less than kQuantisedMemory: of gate and up; of down, so that 28,672 hidden
/// elements have room (two experts of 14,336).
inline constexpr int kSmallChosenRings = 48 * 1024, kSmallJoinedRings = 27 * 1024;

/// Every row of x is multiplied by blocks of its own.
template <class W, class E, int D>
void launch_each_row(const typename E::Params& params, cudaStream_t stream) {
  const auto kernel = skinny_kernel<W, E, 1, D, false>;
  static const cudaError_t allowed = allow_shared_memory(reinterpret_cast<const void*>(kernel));
  check(allowed, "a product with chosen experts");
  const int tiles = E::tiles(params), blocks = (tiles + W::kGroups - 1) / W::kGroups;
  const int bytes = std::max(shared_bytes<W, E, 1, D, false>(1, params.cols), shared_memory_limit() / 2 + 1024);
  if (bytes > shared_memory_limit()) {
    fail_with("cuda backend: experts with " + std::to_string(params.cols) +
              " columns together have no room on this device, expected --backend cpu");
  }
  const int each = std::max(1, multiprocessors() / params.rows);
  launch("a product with chosen experts", Start::Early, kernel, dim3(std::min(blocks, each), params.rows),
         dim3(W::kGroups * kRowThreads), static_cast<size_t>(bytes), stream, params, tiles, units_of<W>(params.cols));
}

}  // namespace tidal::cuda::skinny
