// What decode attention does with slices of an 8-bit cache (KvRowLayout): codes become bf16 in registers, exactly, and
// their scales go where 32 channels share them, into partial scores and into the softmax weights of values.
#pragma once

#include <cuda_fp16.h>

#include "backend/cuda/attention/mend_scores.cuh"
#include "backend/cuda/runtime/bf16_pair.cuh"

namespace tidal::cuda {

/// Two of four codes as bf16. 128 + m is 0x4300 | m for 7 bits m, and with the sign's bit in place of the exponent's
/// last one 0x4300 is 128 and 0x4380 is 256: a code is the one minus the other.
template <int kFirst, int kSecond>
__device__ inline uint32_t widen_codes(uint32_t four) {
  const uint32_t both = __byte_perm(four, 0x43434343u, 0x4040 | kFirst | kSecond << 8);
  const uint32_t value = both & 0xff7fff7fu, sign = both & 0xff80ff80u;
  const __nv_bfloat162 result =
      __hsub2(reinterpret_cast<const __nv_bfloat162&>(value), reinterpret_cast<const __nv_bfloat162&>(sign));
  return reinterpret_cast<const uint32_t&>(result);
}

/// A scale of a row in shared memory: of K's block `index`, or of V's, which follow.
template <int kDim>
__device__ inline float scale_of(const char* row, int index) {
  return __half2float(*reinterpret_cast<const __half*>(row + 2 * kDim + 2 * index));
}

/// As exact_score().
template <int kDim>
static __device__ __noinline__ float exact_score_q8(const float* q, const char* row) {
  double sum = 0;
  for (int d = 0; d < kDim; ++d) {
    const auto code = static_cast<float>(reinterpret_cast<const int8_t*>(row)[d]);
    sum += static_cast<double>(q[d]) * static_cast<double>(scale_of<kDim>(row, d / kKvScaleBlock) * code);
  }
  return static_cast<float>(sum);
}

/// 16 scores of each head, raw, as slice_products() has them.
template <int kDim>
__device__ inline void slice_scores_q8(const AttendRowsArgs& args, const AttendTask& task, const char* shared,
                                       int valid, const Query<kDim>& q, float (&score)[4]) {
  using Sizes = AttendSizes<kDim, KvType::Q8>;
  constexpr int kBlocks = Sizes::kScales;
  const int lane = threadIdx.x % 32, g = lane / 4;
  const uint32_t keys = shared_address(shared) + lane % 16 * Sizes::kStride + lane / 16 * 16;
  const char* const row = shared + g * Sizes::kStride;
#pragma unroll
  for (int i = 0; i < 4; ++i) score[i] = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    // A word: four channels of row g, then of row g + 8; the same, 16 channels on.
    const Fragment codes = load_matrix(keys + b * kKvScaleBlock);
    float upper[4] = {}, middle[4] = {}, lower[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = 2 * b + half;
      if (k >= kDim / 16) continue;
      const uint32_t first = codes.r[2 * half], second = codes.r[2 * half + 1];
      const Fragment a = {
          {widen_codes<0, 1>(first), widen_codes<0, 1>(second), widen_codes<2, 3>(first), widen_codes<2, 3>(second)}};
      multiply_add(upper, a, q[k][0][0], q[k][1][0]);
      multiply_add(middle, a, q[k][0][1], q[k][1][1]);
      multiply_add(lower, a, q[k][0][2], q[k][1][2]);
    }
    const float scale[2] = {scale_of<kDim>(row, b), scale_of<kDim>(row + 8 * Sizes::kStride, b)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[i] = __fmaf_rn(scale[i / 2], __fadd_rn(upper[i], __fadd_rn(middle[i], lower[i])), score[i]);
    }
  }
  mend_scores<kDim>(args, task, valid, score, [&](const float* query, int r) {
    return exact_score_q8<kDim>(query, shared + r * Sizes::kStride);
  });
}

/// As add_values(): V^T [channels x positions] times the weights, which have a block's scales in them.
template <int kDim>
__device__ inline void add_values_q8(const char* shared, const float (&p)[4], WarpState<kDim>& state) {
  using Sizes = AttendSizes<kDim, KvType::Q8>;
  constexpr int kBlocks = Sizes::kScales;
  const int lane = threadIdx.x % 32;
  const uint32_t values = shared_address(shared) + lane % 16 * Sizes::kStride + kDim + lane / 16 * 16;
  const char* const row = shared + lane / 4 * Sizes::kStride;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const float first = scale_of<kDim>(row, kBlocks + b),
                second = scale_of<kDim>(row + 8 * Sizes::kStride, kBlocks + b);
    const uint32_t b0 = transpose(bf16_pair(__fmul_rn(p[0], first), __fmul_rn(p[1], first)));
    const uint32_t b1 = transpose(bf16_pair(__fmul_rn(p[2], second), __fmul_rn(p[3], second)));
    // A word: of positions 2t and 2t + 1 channels 2g and 2g + 1 each; then of positions 8 on; the same, 16 channels on.
    const Fragment codes = load_matrix<true>(values + b * kKvScaleBlock);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * b + half;
      if (i >= kDim / 16) continue;
      const uint32_t before = codes.r[2 * half], behind = codes.r[2 * half + 1];
      const Fragment a = {
          {widen_codes<0, 2>(before), widen_codes<1, 3>(before), widen_codes<0, 2>(behind), widen_codes<1, 3>(behind)}};
      multiply_add(state.out[i], a, b0, b1);
    }
  }
}

}  // namespace tidal::cuda
