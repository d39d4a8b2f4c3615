// Products of float32 matrices by tensor cores: each number is cut into two of tf32, and three of the four products are
// added, so that 22 bits count.
#pragma once

#include <cstdint>

namespace tidal::cuda::tf32 {

/// The upper 11 bits of the significand, and what is left of it.
struct Cut {
  uint32_t high, low;

  __device__ explicit Cut(float value) {
    high = __float_as_uint(value) & 0xffffe000u;
    low = __float_as_uint(__fsub_rn(value, __uint_as_float(high)));
  }
};

/// sums [16 x 8] += a [16 x 8] * b [8 x 8].
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// sums [16 x 8 kTiles] += a [16 x depth] * b [depth x 8 kTiles], by a warp; depth is a multiple of 8. a(row, k) and
/// b(k, column) are numbers. Lane (g = lane / 4, t = lane % 4) has of tile i columns 8i + 2t and 8i + 2t + 1: of row g
/// in sums[i][0] and [1], of row g + 8 in [2] and [3].
template <int kTiles, typename A, typename B>
__device__ inline void multiply(float (&sums)[kTiles][4], int depth, A a, B b) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 2
  for (int k = 0; k < depth; k += 8) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Cut cut(a(g + i % 2 * 8, k + t + i / 2 * 4));
      high[i] = cut.high, low[i] = cut.low;
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const Cut first(b(k + t, 8 * tile + g)), second(b(k + t + 4, 8 * tile + g));
      const uint32_t high_b[2] = {first.high, second.high}, low_b[2] = {first.low, second.low};
      multiply_add(sums[tile], low, high_b);
      multiply_add(sums[tile], high, low_b);
      multiply_add(sums[tile], high, high_b);
    }
  }
}

}  // namespace tidal::cuda::tf32
