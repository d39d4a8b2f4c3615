// The sum of squares of a row, in one order whoever computes it.
#pragma once

#include <cuda_runtime.h>

namespace tidal::cuda {

/// Threads that share a row: thread i adds the squares of its groups of 4 elements, i, i + 256, ...
inline constexpr int kRowThreads = 256;

__device__ inline float add_squares(float sum, float4 v) {
  sum = fmaf(v.x, v.x, sum);
  sum = fmaf(v.y, v.y, sum);
  sum = fmaf(v.z, v.z, sum);
  return fmaf(v.w, v.w, sum);
}

/// The sum over a warp, in every lane.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

/// 1 / rms from the sums of the 8 warps.
__device__ inline float norm_factor(const float* warps, int cols, float epsilon) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kRowThreads / 32; ++w) sum += warps[w];
  return 1.0f / sqrtf(sum / static_cast<float>(cols) + epsilon);
}

}  // namespace tidal::cuda
