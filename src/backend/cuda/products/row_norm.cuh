// The sum of squares of a row, in one order whoever computes it: 16 neighbouring columns at a time as a tree, as the
// end of a product has them; of these sums those 64 apart in ascending order; then 8 neighbours as a tree, then the 8
// sums.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tidal::cuda {

/// Threads that share a row. Thread i has its groups of 4 columns, i, i + 256, ...; warp w the last but one sum w.
inline constexpr int kRowThreads = 256;
/// Columns whose squares are summed at once.
inline constexpr int kSquareColumns = 16;

/// `value` added up over the lanes that differ in bit kFirst, then with the next bit, ..., kLast.
template <int kFirst, int kLast>
__device__ inline float tree_sum(float value) {
#pragma unroll
  for (int offset = kFirst; offset <= kLast; offset *= 2) {
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

/// The squares of 16 columns, 4 of them in each of 4 lanes. All lanes of the warp must be here.
__device__ inline float square_sum(float4 v) {
  const float low = __fadd_rn(__fmul_rn(v.x, v.x), __fmul_rn(v.y, v.y));
  const float high = __fadd_rn(__fmul_rn(v.z, v.z), __fmul_rn(v.w, v.w));
  return tree_sum<1, 2>(__fadd_rn(low, high));
}
/// The same with one column in each of 16 lanes.
__device__ inline float square_sum(float v) { return tree_sum<1, 8>(__fmul_rn(v, v)); }

/// 1 / rms from the sums of the 8 warps.
__device__ inline float norm_factor(const float* warps, int cols, float epsilon) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kRowThreads / 32; ++w) sum += warps[w];
  return 1.0f / sqrtf(sum / static_cast<float>(cols) + epsilon);
}

/// The square sum of four columns added to `before`.
__device__ inline float add_squares(float4 v, float before) {
  return __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, before))));
}

/// 1 / rms from what each of kRowThreads threads has of the squares; `warps` [kRowThreads / 32] is shared memory, free
/// to be written. All threads must be here.
__device__ inline float block_norm_factor(float squares, float* warps, int cols, float epsilon) {
  squares = tree_sum<1, 16>(squares);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = squares;
  __syncthreads();
  return norm_factor(warps, cols, epsilon);
}

/// 1 / rms of rows `first`, `first` + kStep, ... (R of them, those below `rows` are stored) from the sums of 16 columns
/// each, sums [rows, (cols + 15) / 16]. By one warp, which does something else while it waits for them.
template <int R, int kStep, class Meanwhile>
__device__ inline void norm_factors(const float* sums, int first, int rows, int cols, float epsilon, float* factors,
                                    Meanwhile&& meanwhile) {
  const int count = (cols + kSquareColumns - 1) / kSquareColumns, lane = threadIdx.x % 32;
  float low[R] = {}, high[R] = {};  // of warps 0 to 3, of warps 4 to 7
  constexpr int kAhead = 8;
  for (int begin = lane; begin - lane < count; begin += kAhead * 32) {
    float v[R][kAhead];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float* from = sums + static_cast<int64_t>(min(first + r * kStep, rows - 1)) * count;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) v[r][k] = begin + k * 32 < count ? __ldcg(from + begin + k * 32) : 0.0f;
    }
    if (begin == lane) meanwhile();
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int k = 0; k < kAhead; k += 2) {
        low[r] = __fadd_rn(low[r], v[r][k]);
        high[r] = __fadd_rn(high[r], v[r][k + 1]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    low[r] = tree_sum<1, 4>(low[r]);
    high[r] = tree_sum<1, 4>(high[r]);
    float warps[8];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      warps[w] = __shfl_sync(0xffffffffu, low[r], w * 8);
      warps[w + 4] = __shfl_sync(0xffffffffu, high[r], w * 8);
    }
    const float factor = norm_factor(warps, cols, epsilon);
    if (lane == 0 && first + r * kStep < rows) factors[first + r * kStep] = factor;
  }
}
template <int R, int kStep>
__device__ inline void norm_factors(const float* sums, int first, int rows, int cols, float epsilon, float* factors) {
  norm_factors<R, kStep>(sums, first, rows, cols, epsilon, factors, [] {});
}

}  // namespace tidal::cuda
