// Quantised matrices for the skinny product (matmul_skinny.cuh): units of 128 columns, in the tiles of
// weights/quantised_tiles.cuh, times rows that are packed (packed_rows.cuh).
//
// The tensor core multiplies whole numbers: codes with the upper and with the lower bytes of x, without rounding. Such
// a sum of 32 columns is multiplied with their scale in float32; where elements have a minimum, that is multiplied with
// the sum of x over the run. So weights are the file's, and eight codes of 4 bits cost a shift and two masks.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/products/matmul_device.cuh"
#include "backend/cuda/products/packed_rows.cuh"
#include "backend/cuda/weights/quantised.h"
#include "backend/cuda/weights/quantised_tiles.cuh"

namespace tidal::cuda::skinny {

/// float16 `which` of a word.
__device__ inline float half_of(uint32_t word, int which) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(which ? word >> 16 : word)));
}
__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

/// The bytes of x: upper ones have a sign, lower ones none.
enum class Bytes { Upper, Lower };

/// One step of the tensor core over a run: before + codes * x. Codes have a sign, or none.
template <bool kSigned, Bytes kBytes>
__device__ inline int4 multiply_run(const int4& before, const uint32_t (&a)[4], uint32_t x0, uint32_t x1) {
  int4 sum;
  if constexpr (kSigned && kBytes == Bytes::Upper) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x0), "r"(x1), "r"(before.x), "r"(before.y), "r"(before.z),
          "r"(before.w));
  } else if constexpr (kSigned) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x0), "r"(x1), "r"(before.x), "r"(before.y), "r"(before.z),
          "r"(before.w));
  } else if constexpr (kBytes == Bytes::Upper) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x0), "r"(x1), "r"(before.x), "r"(before.y), "r"(before.z),
          "r"(before.w));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x0), "r"(x1), "r"(before.x), "r"(before.y), "r"(before.z),
          "r"(before.w));
  }
  return sum;
}
/// The same over half a run; codes have a sign.
template <Bytes kBytes>
__device__ inline int4 multiply_half(const int4& before, uint32_t a0, uint32_t a1, uint32_t x) {
  int4 sum;
  if constexpr (kBytes == Bytes::Upper) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
                 : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
                 : "r"(a0), "r"(a1), "r"(x), "r"(before.x), "r"(before.y), "r"(before.z), "r"(before.w));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
                 : "=r"(sum.x), "=r"(sum.y), "=r"(sum.z), "=r"(sum.w)
                 : "r"(a0), "r"(a1), "r"(x), "r"(before.x), "r"(before.y), "r"(before.z), "r"(before.w));
  }
  return sum;
}
/// `kAll`: not only those of even rows of x.
template <bool kAll>
__device__ inline int4 times_256(const int4& v) {
  return make_int4(v.x * 256, kAll ? v.y * 256 : v.y, v.z * 256, kAll ? v.w * 256 : v.w);
}

/// The codes of a lane in one row of a tile.
template <class T>
struct Codes {
  uint4 codes[T::kCodes / 512];
  uint32_t low[T::kLow > 0 ? T::kLow / 128 : 1];

  __device__ Codes(const char* tile, int lane) {
#pragma unroll
    for (int i = 0; i < T::kCodes / 512; ++i) codes[i] = reinterpret_cast<const uint4*>(tile)[i * 32 + lane];
#pragma unroll
    for (int i = 0; i < T::kLow / 128; ++i) {
      low[i] = reinterpret_cast<const uint32_t*>(tile + T::kCodes + T::kScaleBytes)[i * 32 + lane];
    }
  }
  /// Elements 0 to 3 of a run, or 4 to 7 (`second`), a byte each, from its highest bit on: 2^(8 - kBits) times the
  /// code, or its value in the table.
  __device__ uint32_t four(int run, int second) const {
    if constexpr (T::kBits == 8) {
      return word_of(codes[run / 2], run % 2 * 2 + second);
    } else if constexpr (T::kLooksUp) {
      // A selection reaches 8 bytes: both halves of the table by three bits of each nibble, then by the fourth.
      const uint32_t nibbles = word_of(codes[0], run) >> 16 * second;
      const uint32_t low = __byte_perm(T::Values::word(0), T::Values::word(1), nibbles & 0x7777);
      const uint32_t high = __byte_perm(T::Values::word(2), T::Values::word(3), nibbles & 0x7777);
      return __byte_perm(low, high, 0x3210 | (nibbles >> 1 & 0x4444));
    } else {
      const uint32_t word = word_of(codes[0], run);
      uint32_t bytes = (second ? word : word << 4) & 0xf0f0f0f0u;
      const auto moved = [](uint32_t bits, int from, int to) {
        return from < to ? bits << (to - from) : bits >> (from - to);
      };
      if constexpr (T::kBits == 5) bytes |= moved(low[0], 2 * run + second, 3) & 0x08080808u;
      if constexpr (T::kBits == 6) bytes |= moved(low[run / 2], 4 * (run % 2) + 2 * second, 2) & 0x0c0c0c0cu;
      return bytes;
    }
  }
};

/// The scales of a row of a tile: inner ones of the runs, by the outer one where there is one.
template <class T>
struct ScalesOf {
  uint32_t inner[T::kScaleRow / 4];
  float outer = 1, outer_minimum = 1;

  __device__ ScalesOf(const char* tile, int g) {
    const char* from = tile + T::kCodes + g * T::kScaleRow;
    if constexpr (T::kScaleRow == 16) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      inner[0] = v.x, inner[1] = v.y, inner[2] = v.z, inner[3] = v.w;
    } else if constexpr (T::kScaleRow == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      inner[0] = v.x, inner[1] = v.y;
    } else {
      inner[0] = *reinterpret_cast<const uint32_t*>(from);
    }
    if constexpr (T::kNested) {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(tile + T::kCodes + 8 * T::kScaleRow + g * 4);
      outer = half_of(both, 0);
      outer_minimum = -half_of(both, 1);
    }
  }
  /// Byte `which` of the inner ones, with a sign or none: placed behind 2^23, less that.
  template <bool kSigned>
  __device__ float byte(int which) const {
    const uint32_t word = kSigned ? inner[which / 4] ^ 0x80808080u : inner[which / 4];
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540u + which % 4)) - (kSigned ? 0x1p23f + 128 : 0x1p23f);
  }
  /// Of a half of a run; but for Scales::Halves both are the same.
  __device__ float scale(int run, int half) const {
    if constexpr (T::kScales == tiles::Scales::One) return half_of(inner[run / 2], run % 2);
    if constexpr (T::kScales == tiles::Scales::Minimum) return half_of(inner[run], 0);
    if constexpr (T::kScales == tiles::Scales::Nested) return byte<false>(2 * run);
    if constexpr (T::kScales == tiles::Scales::Signed) return byte<true>(run);
    if constexpr (T::kScales == tiles::Scales::Power) return half_power(inner[0] >> run * 8 & 255);
    return byte<true>(2 * run + half);
  }
};

/// The minimum of a run of row g, without the outer one: twice, of float16.
template <class T>
__device__ inline uint32_t minimum_twice(const char* tile, int g, int run) {
  const char* scales = tile + T::kCodes + g * T::kScaleRow;
  if constexpr (T::kScales == tiles::Scales::Minimum) {
    const uint32_t minimum = *reinterpret_cast<const uint16_t*>(scales + 4 * run + 2);
    return __byte_perm(minimum, 0, 0x1010);
  } else {
    // A byte behind 1024, less that.
    const uint32_t byte = *reinterpret_cast<const uint8_t*>(scales + 2 * run + 1);
    const uint32_t behind = __byte_perm(byte, 0x64u, 0x4040), offset = 0x64006400u;
    const __half2 minimum =
        __hsub2(*reinterpret_cast<const __half2*>(&behind), *reinterpret_cast<const __half2*>(&offset));
    return *reinterpret_cast<const uint32_t*>(&minimum);
  }
}

/// Minimums times sums of x over the four runs, a 1024th of it: lane 4 g + t has run t of rows g and g + 8, and of
/// token g. Products are exact, the tensor core adds them up.
__device__ inline float4 multiply_minimums(uint32_t low, uint32_t high, uint32_t sums) {
  float4 sum;
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
               : "=f"(sum.x), "=f"(sum.y), "=f"(sum.z), "=f"(sum.w)
               : "r"(low), "r"(high), "r"(sums), "f"(0.0f));
  return sum;
}

/// Whether the two bytes of x are multiplied apart and then put together, not one after the other: no wait between
/// them, but more registers. As measured.
template <class T, int NT>
inline constexpr bool kApart = NT == 1 || T::kMinimum;

/// sum += of rows g and g + 8 scale * products.
__device__ inline void add_scaled(float4& sum, float low, float high, const int4& products) {
  sum.x = __fmaf_rn(low, static_cast<float>(products.x), sum.x);
  sum.y = __fmaf_rn(low, static_cast<float>(products.y), sum.y);
  sum.z = __fmaf_rn(high, static_cast<float>(products.z), sum.z);
  sum.w = __fmaf_rn(high, static_cast<float>(products.w), sum.w);
}

/// A unit of x whose rows lie one behind the other. What the tensor core has in the place of rows behind the last one
/// is of no account; they are that one. `kOne`: there is one row.
template <bool kOne>
struct UnitOfRows {
  const char* first;
  int row_bytes, last, lane;

  __device__ const char* row(int token) const { return first + (kOne ? 0 : min(token, last) * row_bytes); }
  /// A lane's numbers of a run: of token n * 8 + lane / 4.
  __device__ uint4 numbers(int n, int run) const {
    return *reinterpret_cast<const uint4*>(row(n * 8 + lane / 4) + run * 64 + lane % 4 * 16);
  }
  /// The sum of run lane % 4, of token n * 8 + lane / 4.
  __device__ uint32_t sums(int n) const {
    return *reinterpret_cast<const uint32_t*>(row(n * 8 + lane / 4) + kPackedSums + lane % 4 * 4);
  }
  /// The scale of token n * 8 + lane % 4 * 2 + i.
  __device__ float scale(int n, int i) const {
    return *reinterpret_cast<const float*>(row(n * 8 + lane % 4 * 2 + i) + kPackedScale);
  }
};

/// sums += two tiles, as TileUnits has them in a slot of the ring, times a unit X of x.
template <class T, bool kOne, int NT, class X>
__device__ inline void multiply_tiles(float4 (&sums)[NT], const char* slot, int lane, const X& x) {
  const int g = lane / 4;
  const Codes<T> low(slot, lane), high(slot + T::kBytes, lane);
  const ScalesOf<T> low_scales(slot, g), high_scales(slot + T::kBytes, g);
  // Of one row nothing is kept of every second place, so that the compiler leaves out what would be made there.
  float4 part[NT] = {}, minimums[NT] = {};
  if constexpr (T::kMinimum) {
    const uint32_t low_minimums = minimum_twice<T>(slot, g, lane % 4);
    const uint32_t high_minimums = minimum_twice<T>(slot + T::kBytes, g, lane % 4);
#pragma unroll
    for (int n = 0; n < NT; ++n) minimums[n] = multiply_minimums(low_minimums, high_minimums, x.sums(n));
  }
#pragma unroll
  for (int run = 0; run < 4; ++run) {
    const uint32_t a[4] = {low.four(run, 0), high.four(run, 0), low.four(run, 1), high.four(run, 1)};
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const uint4 v = x.numbers(n, run);
      constexpr int4 kNothing{};
      constexpr bool kSigned = !T::kMinimum;
      if constexpr (T::kHalves) {
        const int4 one = times_256<!kOne>(multiply_half<Bytes::Upper>(kNothing, a[0], a[1], v.x));
        const int4 two = times_256<!kOne>(multiply_half<Bytes::Upper>(kNothing, a[2], a[3], v.y));
        add_scaled(part[n], low_scales.scale(run, 0), high_scales.scale(run, 0),
                   multiply_half<Bytes::Lower>(one, a[0], a[1], v.z));
        add_scaled(part[n], low_scales.scale(run, 1), high_scales.scale(run, 1),
                   multiply_half<Bytes::Lower>(two, a[2], a[3], v.w));
      } else {
        const int4 upper = multiply_run<kSigned, Bytes::Upper>(kNothing, a, v.x, v.y);
        int4 both;
        if constexpr (kApart<T, NT>) {
          const int4 lower = multiply_run<kSigned, Bytes::Lower>(kNothing, a, v.z, v.w);
          both = make_int4(upper.x * 256 + lower.x, upper.y * 256 + lower.y, upper.z * 256 + lower.z,
                           upper.w * 256 + lower.w);
        } else {
          both = multiply_run<kSigned, Bytes::Lower>(times_256<!kOne>(upper), a, v.z, v.w);
        }
        add_scaled(part[n], low_scales.scale(run, 0), high_scales.scale(run, 0), both);
      }
    }
  }
  constexpr float kShare = T::kLooksUp ? 1.0f : 1.0f / (1 << (8 - T::kBits));  // a byte is so much more than the code
  // A power of 2 as the scale of x is: either takes it, to the same bits.
  constexpr bool kWithScale = !T::kNested && !T::kMinimum;
  const auto whole = [&](float sum, float minimum, const ScalesOf<T>& scales) {
    if constexpr (kWithScale) return sum;
    sum = __fmul_rn(sum, kShare * scales.outer);
    return T::kMinimum ? __fmaf_rn(minimum, 1024 * scales.outer_minimum, sum) : sum;
  };
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) scale[i] = x.scale(n, i) * (kWithScale ? kShare : 1.0f);
    sums[n].x = __fmaf_rn(scale[0], whole(part[n].x, minimums[n].x, low_scales), sums[n].x);
    sums[n].z = __fmaf_rn(scale[0], whole(part[n].z, minimums[n].z, high_scales), sums[n].z);
    if constexpr (kOne) continue;
    sums[n].y = __fmaf_rn(scale[1], whole(part[n].y, minimums[n].y, low_scales), sums[n].y);
    sums[n].w = __fmaf_rn(scale[1], whole(part[n].w, minimums[n].w, high_scales), sums[n].w);
  }
}

/// Matrices whose tiles are T's. A slot has those of rows g (the first) and g + 8, as they lie in memory. `kOne`: of x
/// there is one row, which each block packs for itself. kGroups: two have more warps to hide what a code's way to a
/// product takes, and x once for both; one, where there are few tiles.
template <class T, bool kOneRow, int kGroupsOf = 2>
struct TileUnits {
  static constexpr int kUnit = kTileCols, kSlot = 2 * T::kBytes;
  static constexpr bool kShared = true, kPacked = true, kOne = kOneRow;
  static constexpr int kGroups = kGroupsOf;
  static constexpr int kBlocks = 1, kPackers = kGroups * kWarps - 1;  // warps that pack

  /// Bytes of a row of x: two rows are half a bank cycle apart.
  __host__ __device__ static int x_row(int units) { return units * kPackedUnit + (2 - units & 3) * 32; }
  /// The same of one unit, in the ring of x.
  static constexpr int kXRow = 320;
  template <int NT>
  static constexpr int kXSlot = 8 * NT* kXRow;

  struct Aim {
    const char *low, *high;  // the tiles of the rows that come next
    template <class Params, class Row>
    __device__ void at(const Params& p, Row&& row, int lane, int warp) {
      const int64_t across = static_cast<int64_t>((p.cols + kUnit - 1) / kUnit) * T::kBytes;
      const RowOf first = row(0), second = row(8);
      const int64_t own = warp * T::kBytes + lane * 16;
      low = reinterpret_cast<const char*>(first.matrix) + first.row / kTileRows * across + own;
      high = reinterpret_cast<const char*>(second.matrix) + second.row / kTileRows * across + own;
    }
  };

  /// Two tiles from where a lane's part of them begins.
  __device__ static void copy_tiles(char* slot, const char* low, const char* high, int lane) {
    char* to = slot + lane * 16;
#pragma unroll
    for (int i = 0; i < T::kCodes; i += 512) {
      copy_16(to + i, low + i, true);
      copy_16(to + T::kBytes + i, high + i, true);
    }
    // What is behind the codes of both, as one list.
#pragma unroll
    for (int i = 0; i < 2 * T::kSide; i += 512) {
      const int at = i + lane * 16;
      if (at >= 2 * T::kSide) break;
      const bool second = at >= T::kSide;
      const int from = T::kCodes + i - (second ? T::kSide : 0);
      copy_16(to + from + (second ? T::kBytes : 0), (second ? high : low) + from, true);
    }
  }
  __device__ static void copy(char* slot, Aim& aim, int, int, int lane) {
    copy_tiles(slot, aim.low, aim.high, lane);
    aim.low += kWarps * T::kBytes;
    aim.high += kWarps * T::kBytes;
  }

  /// Stores four columns of a row of x, i-th of them; all lanes of a warp have neighbours.
  __device__ static void put_four(char* row, int i, int units, float4 v, bool) {
    if (i / 32 >= units) return;
    float x[4];
    round_four(v, x);
    pack_unit<T::kMinimum>(PackedPlace(row + i / 32 * kPackedUnit), x, threadIdx.x % 32);
  }
  /// Has a row that was rounded before in shared memory.
  __device__ static void load_rows(const SkinnyInput& in, int, int cols, int units, char* xs) {
    static_assert(kOne);
    constexpr int kAhead = 4;
    const int lane = threadIdx.x % 32;
    for (int first = threadIdx.x / 32; first < units; first += kAhead * kPackers) {
      float x[kAhead][4];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) read_four(in.rounded, (first + k * kPackers) * kUnit + 4 * lane, cols, x[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int unit = first + k * kPackers;
        if (unit < units) pack_unit<T::kMinimum>(PackedPlace(xs + unit * kPackedUnit), x[k], lane);
      }
    }
  }
  /// A lane's part of what the ring of x has of a unit of row `row`, or of zeros.
  __device__ static void copy_x(char* slot, const char* packed, int row, int unit, int units, int g, int t, bool live) {
    const PackedPlace from(const_cast<char*>(packed), live ? row : 0, unit, units);
    char* to = slot + g * kXRow;
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      copy_16(to + run * 64 + t * 16, from.numbers + ((run * 4 + t) ^ from.exchange) * 16, live);
    }
    if (t < 2) copy_16(to + kPackedSums + t * 16, t == 0 ? from.sums : from.scale, live);
  }

  /// x: this unit of row 0, `x_row` bytes before row 1's.
  template <int NT>
  __device__ static void multiply(float4 (&sums)[NT], const char* slot, int lane, const char* x, int x_row, int rows) {
    multiply_tiles<T, kOne>(sums, slot, lane, UnitOfRows<kOne>{x, x_row, rows - 1, lane});
  }
};

}  // namespace tidal::cuda::skinny
