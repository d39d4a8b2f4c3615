// A softmax's statistics as positions come: the maximum and the sum, of one lane first, then of a warp, of a context.
#pragma once

#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/runtime/head_tiles.h"

namespace tidal::cuda {

/// `scale` is log2(e) / sqrt(head_dim) everywhere.
struct RunningSoftmax {
  float maximum = negative_infinity();
  float sum = 0;

  template <int kCount>
  __device__ void add(const float (&scores)[kCount], float scale) {
    float top = maximum;
#pragma unroll
    for (int i = 0; i < kCount; ++i) top = fmaxf(top, scores[i]);
    const float from = top == negative_infinity() ? 0.0f : top;
    sum = maximum == top ? sum : __fmul_rn(sum, power_of_two(__fmul_rn(__fsub_rn(maximum, from), scale)));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum = __fadd_rn(sum, power_of_two(__fmul_rn(__fsub_rn(scores[i], from), scale)));
    }
    maximum = top;
  }

  /// Where nobody asks for the sum.
  template <int kCount>
  __device__ void add_maximum(const float (&scores)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) maximum = fmaxf(maximum, scores[i]);
  }

  __device__ void add(float other_maximum, float other_sum, float scale) {
    const float top = fmaxf(maximum, other_maximum);
    sum = __fmaf_rn(factor(maximum, top, scale), sum, __fmul_rn(factor(other_maximum, top, scale), other_sum));
    maximum = top;
  }

  /// Adds those of the lanes whose numbers differ in the bits from kFirst up to below kEnd.
  template <int kFirst, int kEnd>
  __device__ void add_lanes(float scale) {
#pragma unroll
    for (int apart = kFirst; apart < kEnd; apart *= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, maximum, apart);
      add(other, __shfl_xor_sync(0xffffffffu, sum, apart), scale);
    }
  }

 private:
  __device__ static float factor(float of, float top, float scale) {
    return of == top ? 1.0f : power_of_two(__fmul_rn(__fsub_rn(of, top), scale));
  }
};

/// The whole of `count` parts, by a whole warp. What the first lane gets is the same bits whoever asks; the others' may
/// differ in the last.
__device__ inline SoftmaxPart whole_of(const SoftmaxPart* parts, int count, float scale) {
  if (count == 1) return *parts;
  constexpr int kAtOnce = 2;
  RunningSoftmax whole;
  for (int first = threadIdx.x % 32; first < count; first += 32 * kAtOnce) {
    float2 part[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      part[i] = {negative_infinity(), 0};
      if (first + 32 * i < count) part[i] = *reinterpret_cast<const float2*>(parts + first + 32 * i);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) whole.add(part[i].x, part[i].y, scale);
  }
  whole.add_lanes<1, 32>(scale);
  return {whole.maximum, whole.sum};
}

}  // namespace tidal::cuda
