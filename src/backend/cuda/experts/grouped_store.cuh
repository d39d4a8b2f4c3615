// What grouped products do with their results, and where a tile is.
#pragma once

#include "backend/cuda/experts/grouped_products.h"
#include "backend/cuda/products/activation.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"

namespace tidal::cuda::grouped {

inline constexpr const char* kGroupedWhat = "products of grouped rows";

/// The group that has tile `tile`, of those from `from` on. tiles: [count + 1], where groups' tiles begin.
__device__ inline int find_group(const int32_t* tiles, int from, int count, int tile) {
  int least = from, most = count - 1;
  while (least < most) {
    const int middle = (least + most + 1) / 2;
    if (__ldcg(tiles + middle) <= tile) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return least;
}

/// An expert's factors.
struct GateUpScales {
  float gate, up, down;
  int64_t biases;  ///< where its own begin

  __device__ GateUpScales(const GroupedGateUp& p, int expert)
      : gate(p.gate_scales ? __ldg(p.gate_scales + expert) : 1.0f),
        up(p.up_scales ? __ldg(p.up_scales + expert) : 1.0f),
        down(p.down_scales ? __ldg(p.down_scales + expert) : 1.0f),
        biases(static_cast<int64_t>(expert) * p.stride + p.panel.begin) {}
};

/// Two neighbours of a place's hidden layer, from `row` of the panel on.
__device__ inline void store_gate_up(const GroupedGateUp& p, const GateUpScales& of, int place, int row,
                                     const float* gates, const float* ups) {
  const float weight = __ldcg(p.groups.weight + place) * of.down;
  float result[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float gate = gates[k] * of.gate, up = ups[k] * of.up;
    if (p.gate_biases) gate += __ldg(p.gate_biases + of.biases + row + k);
    if (p.up_biases) up += __ldg(p.up_biases + of.biases + row + k);
    result[k] = activated(p.activation, gate, up) * weight;
  }
  *reinterpret_cast<uint32_t*>(p.hidden + static_cast<int64_t>(place) * p.stride + p.panel.begin + row) =
      bf16_pair(result[0], result[1]);
}

/// Two neighbours of a place's results.
__device__ inline void store_down(const GroupedDown& p, int expert, int place, int row, const float* sums) {
  float2 result = make_float2(sums[0], sums[1]);
  if (p.biases) {
    const float weight = __ldcg(p.groups.weight + place);
    const float* bias = p.biases + static_cast<int64_t>(expert) * p.stride + p.panel.begin + row;
    result.x = __fmaf_rn(weight, __ldg(bias), result.x);
    result.y = __fmaf_rn(weight, __ldg(bias + 1), result.y);
  }
  *reinterpret_cast<float2*>(p.results + static_cast<int64_t>(place) * p.stride + p.panel.begin + row) = result;
}

/// The products from tiles of type T, in a file of their own: they take long to compile.
template <class T>
struct ProductsOf {
  static void gate_up(const GroupedGateUp& p, cudaStream_t stream);
  static void down(const GroupedDown& p, cudaStream_t stream);
};

}  // namespace tidal::cuda::grouped
