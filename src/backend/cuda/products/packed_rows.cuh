// Rows of x as the product with quantised weights takes them: whole numbers of 16 bits, cut into two bytes for the
// tensor core, with a scale for every unit of 128 columns. What is packed was rounded to bf16 before, whose 8 bits are
// the larger error: a unit's largest element has 14 or 15 here, one of a hundredth of it still 8.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace tidal::cuda::skinny {

/// A unit of a row has 256 bytes of numbers, [4 runs][4 lanes t] the upper bytes of 4 + 4 columns, then their lower
/// bytes (those of tiles::column()); [4] sums of the runs' numbers, as two of float16: 1024 times the first and the
/// second; float32 scale; nothing.
inline constexpr int kPackedUnit = 288;  // bytes
inline constexpr int kPackedSums = 256, kPackedScale = 272;
/// In memory rows lie in eights, [units] of these: [8 rows] numbers, in odd rows the halves of 128 bytes exchanged;
/// then [8 rows] sums and scale, the two exchanged in every other four rows. So what lanes read at once meets in no
/// bank.
inline constexpr int kPackedRows = 8, kPackedBlock = kPackedRows * kPackedUnit, kPackedNumbers = kPackedRows * 256;

/// Warps of a block that packs, a unit each: few enough to start beside a product's block.
inline constexpr int kPackingWarps = 4;

__host__ __device__ inline int packed_units(int cols) { return (cols + 127) / 128; }

/// Where a unit of a row is.
struct PackedPlace {
  char *numbers, *sums, *scale;
  int exchange;  // for pieces of 16 bytes

  /// Of a row that lies alone.
  __device__ explicit PackedPlace(char* unit)
      : numbers(unit), sums(unit + kPackedSums), scale(unit + kPackedScale), exchange(0) {}
  __device__ PackedPlace(char* rows, int row, int unit, int units) {
    const int in_block = row % kPackedRows, swapped = in_block / 4;
    char* block = rows + (static_cast<int64_t>(row / kPackedRows) * units + unit) * kPackedBlock;
    numbers = block + in_block * 256;
    sums = block + kPackedNumbers + in_block * 32 + swapped * 16;
    scale = sums + 16 - 32 * swapped;
    exchange = in_block % 2 * 4;
  }
};

/// By a whole warp: lane l has the columns 4 l to 4 l + 3 of the unit, numbers of bf16. x is number * scale, a power of
/// 2, but the scale is NaN where an element is NaN or infinite. Without kSums there are none.
template <bool kSums = true>
__device__ inline void pack_unit(const PackedPlace& place, const float (&x)[4], int lane) {
  constexpr uint32_t kExponent = 0x7f800000u, kTiny = 0x0d800000u;  // 2^-100: the scale gets no smaller than of this
  uint32_t bits = kTiny;
#pragma unroll
  for (int i = 0; i < 4; ++i) bits = max(bits, __float_as_uint(x[i]) & 0x7fffffffu);
  bits = __reduce_max_sync(0xffffffffu, bits);
  // Of a largest element in [2^e, 2^(e + 1)) numbers are below 2^15: the scale is 2^(e - 14).
  const uint32_t exponent = bits & kExponent;
  const bool finite = exponent != kExponent;
  const float inverse = __uint_as_float(((254u + 14u) << 23) - exponent);
  const float scale = finite ? __uint_as_float(exponent - (14u << 23)) : __uint_as_float(0x7fc00000u);
  // 1.5 * 2^23 more: the lower 16 bits are the number.
  uint32_t number[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) number[i] = __float_as_uint(__fmaf_rn(x[i], inverse, 0x1.8p23f));
  const uint32_t first = __byte_perm(number[0], number[1], 0x5140), second = __byte_perm(number[2], number[3], 0x5140);
  const uint32_t lower = __byte_perm(first, second, 0x5410), upper = __byte_perm(first, second, 0x7632);
  const int in_run = lane % 8;
  const int piece = (lane / 8 * 4 + in_run % 4) ^ place.exchange;
  auto* to = reinterpret_cast<uint32_t*>(place.numbers + piece * 16 + in_run / 4 * 4);
  to[0] = upper;
  to[2] = lower;
  if constexpr (kSums) {
    int sum = 256 * __dp4a(static_cast<int>(upper), 0x01010101, 0) + static_cast<int>(__dp4a(lower, 0x01010101u, 0u));
#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (in_run == 0) {  // both are exact: 32 numbers of 16 bits add up to 21
      reinterpret_cast<__half2*>(place.sums)[lane / 8] =
          __floats2half2_rn(static_cast<float>(sum >> 10), static_cast<float>(sum & 1023) * 0x1p-10f);
    }
  }
  if (lane == 0) *reinterpret_cast<float*>(place.scale) = scale;
}

/// Four neighbours of a row of bf16 from column `col` on, zeros behind its end; `cols` is a multiple of 4.
__device__ inline void read_four(const __nv_bfloat16* row, int col, int cols, float (&x)[4]) {
  uint2 packed = make_uint2(0, 0);
  if (col < cols) packed = __ldcg(reinterpret_cast<const uint2*>(row + col));
  x[0] = __uint_as_float(packed.x << 16);
  x[1] = __uint_as_float(packed.x & 0xffff0000u);
  x[2] = __uint_as_float(packed.y << 16);
  x[3] = __uint_as_float(packed.y & 0xffff0000u);
}

/// The same of float32, rounded.
__device__ inline void round_four(float4 v, float (&x)[4]) {
  x[0] = __bfloat162float(__float2bfloat16_rn(v.x));
  x[1] = __bfloat162float(__float2bfloat16_rn(v.y));
  x[2] = __bfloat162float(__float2bfloat16_rn(v.z));
  x[3] = __bfloat162float(__float2bfloat16_rn(v.w));
}

}  // namespace tidal::cuda::skinny
