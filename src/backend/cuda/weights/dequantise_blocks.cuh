// ggml's blocks of quantised weights: where scales and quants lie, and what an element is worth. The products and sums
// are those of ggml's own dequantisation in the same order; whoever includes this must not let them be fused
// (-fmad=false).
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace tidal::cuda {

// Every type has kBytes and kElements of a block, and eight(): the elements [first, first + 8), which never straddle a
// change of scale; first is a multiple of 8. Those that may stay quantised (quantised_tiles.cuh) have quant(), that of
// an element, too.

__host__ __device__ inline float half_at(const uint8_t* from) {
  __half_raw raw;
  raw.x = static_cast<uint16_t>(from[0] | from[1] << 8);
  return __half2float(__half(raw));
}

struct Float32 {
  static constexpr int kBytes = 32, kElements = 8;
  __host__ __device__ static void eight(const uint8_t* block, int, float* to) {
    const auto* from = reinterpret_cast<const float*>(block);
    for (int i = 0; i < 8; ++i) to[i] = from[i];
  }
};

struct Float16 {
  static constexpr int kBytes = 16, kElements = 8;
  __host__ __device__ static void eight(const uint8_t* block, int, float* to) {
    for (int i = 0; i < 8; ++i) to[i] = half_at(block + 2 * i);
  }
};

/// Blocks of 32 by nibbles: scale, for kMinimum a minimum, for kFifth 32 fifth bits, 16 bytes of quants. Low nibbles
/// are elements 0 to 15, high ones 16 to 31. An element is scale * (quant - kOffset), or scale * quant + minimum.
template <bool kMinimum, bool kFifth, int kOffset>
struct Nibbles {
  static constexpr int kHead = kMinimum ? 4 : 2;
  static constexpr int kBytes = kHead + (kFifth ? 4 : 0) + 16, kElements = 32;
  __host__ __device__ static int quant(const uint8_t* block, int i) {
    const int low = block[kBytes - 16 + i % 16] >> i / 16 * 4 & 15;
    return kFifth ? low | (block[kHead + i / 8] >> i % 8 & 1) << 4 : low;
  }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float scale = half_at(block), minimum = kMinimum ? half_at(block + 2) : 0.0f;
    for (int i = 0; i < 8; ++i) {
      const float value = static_cast<float>(quant(block, first + i) - kOffset) * scale;
      to[i] = kMinimum ? value + minimum : value;
    }
  }
};
using Q4_0 = Nibbles<false, false, 8>;
using Q4_1 = Nibbles<true, false, 0>;
using Q5_0 = Nibbles<false, true, 16>;
using Q5_1 = Nibbles<true, true, 0>;

struct Q8_0 {
  static constexpr int kBytes = 34, kElements = 32;
  __host__ __device__ static int quant(const uint8_t* block, int i) { return static_cast<int8_t>(block[2 + i]); }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float scale = half_at(block);
    for (int i = 0; i < 8; ++i) to[i] = static_cast<float>(quant(block, first + i)) * scale;
  }
};

/// What a nibble stands for in types that look their values up: bytes with a sign, of the first 8 nibbles and of the
/// others, the first one lowest. Constants, so that kernels need no memory for them.
template <uint64_t kLow, uint64_t kHigh>
struct Table {
  __host__ __device__ static constexpr int value(int nibble) {
    return static_cast<int8_t>((nibble < 8 ? kLow : kHigh) >> nibble % 8 * 8 & 255);
  }
  /// Those of four nibbles.
  __host__ __device__ static constexpr uint32_t word(int i) {
    return static_cast<uint32_t>((i < 2 ? kLow : kHigh) >> i % 2 * 32);
  }
};
/// Of IQ4_NL and IQ4_XS: -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.
using Iq4Table = Table<0xf6eaddcfbfad9881, 0x7159453526190d01>;
/// Of MXFP4: twice the values of a float of 4 bits, 0, 1, 2, 3, 4, 6, 8, 12 and the same below zero.
using Float4Table = Table<0x0c08060403020100, 0xf4f8fafcfdfeff00>;

/// Scale, 16 bytes of nibbles as in the types above.
struct IQ4_NL {
  static constexpr int kBytes = 18, kElements = 32;
  __host__ __device__ static int quant(const uint8_t* block, int i) { return block[2 + i % 16] >> i / 16 * 4 & 15; }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float scale = half_at(block);
    for (int i = 0; i < 8; ++i) to[i] = scale * static_cast<float>(Iq4Table::value(quant(block, first + i)));
  }
};

/// 2^(exponent - 128): half of what a scale of 8 exponent bits is, since the table's values are twice theirs.
__host__ __device__ inline float half_power(int exponent) {
  const uint32_t bits = exponent < 2 ? 0x00200000u << exponent : static_cast<uint32_t>(exponent - 1) << 23;
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

/// Exponent of the scale, 16 bytes of nibbles.
struct MXFP4 {
  static constexpr int kBytes = 17, kElements = 32;
  __host__ __device__ static int quant(const uint8_t* block, int i) { return block[1 + i % 16] >> i / 16 * 4 & 15; }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float scale = half_power(block[0]);
    for (int i = 0; i < 8; ++i) to[i] = scale * static_cast<float>(Float4Table::value(quant(block, first + i)));
  }
};

// Blocks of 256. Two-bit parts of quants lie in two runs of 32 bytes: byte l of run h has those of the elements 128 h +
// 32 j + l, j from the lowest bits on.

/// [16] scale and minimum of 16 elements in 4 bits each, [64] quants, their scale, their minimum.
struct Q2_K {
  static constexpr int kBytes = 84, kElements = 256;
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const int both = block[first / 16];
    const float scale = half_at(block + 80) * static_cast<float>(both & 15);
    const float minimum = half_at(block + 82) * static_cast<float>(both >> 4);
    const uint8_t* const quants = block + 16 + first / 128 * 32 + first % 32;
    const int shift = first % 128 / 32 * 2;
    for (int i = 0; i < 8; ++i) to[i] = scale * static_cast<float>(quants[i] >> shift & 3) - minimum;
  }
};

/// [32] third bits (bit j of byte l is of element 32 j + l, and set where nothing is taken off), [64] quants, [12]
/// 6-bit scales of 16 elements (low nibbles in the first 8 bytes, the other bits in the last 4), their scale.
struct Q3_K {
  static constexpr int kBytes = 110, kElements = 256;
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const uint8_t* const scales = block + 96;
    const int which = first / 16;
    const int low = scales[which % 8] >> which / 8 * 4 & 15, high = scales[8 + which % 4] >> which / 4 * 2 & 3;
    const float scale = half_at(block + 108) * static_cast<float>((low | high << 4) - 32);
    const uint8_t* const quants = block + 32 + first / 128 * 32 + first % 32;
    const uint8_t* const thirds = block + first % 32;
    const int shift = first % 128 / 32 * 2;
    for (int i = 0; i < 8; ++i) {
      const int third = thirds[i] >> first / 32 & 1;
      to[i] = scale * static_cast<float>((quants[i] >> shift & 3) - (third ? 0 : 4));
    }
  }
};

/// Scale, minimum, [12] 6-bit scales and minimums of 32 elements, for kFifth [32] fifth bits (bit j of byte l is of
/// element 32 j + l), [128] nibbles (byte l of run h has elements 64 h + l and 64 h + 32 + l).
template <bool kFifth>
struct NibblesOf256 {
  static constexpr int kBytes = kFifth ? 176 : 144, kElements = 256;
  __host__ __device__ static int quant(const uint8_t* block, int i) {
    const int low = block[kBytes - 128 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
    return kFifth ? low | (block[16 + i % 32] >> i / 32 & 1) << 4 : low;
  }
  /// Of the elements 32 j to 32 j + 31.
  __host__ __device__ static int scale(const uint8_t* block, int j) {
    const uint8_t* const packed = block + 4;
    return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
  }
  __host__ __device__ static int minimum(const uint8_t* block, int j) {
    const uint8_t* const packed = block + 4;
    return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
  }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float of_scale = half_at(block) * static_cast<float>(scale(block, first / 32));
    const float of_minimum = half_at(block + 2) * static_cast<float>(minimum(block, first / 32));
    for (int i = 0; i < 8; ++i) to[i] = of_scale * static_cast<float>(quant(block, first + i)) - of_minimum;
  }
};
using Q4_K = NibblesOf256<false>;
using Q5_K = NibblesOf256<true>;

/// [128] low nibbles (byte l of run h has elements 128 h + l and 128 h + 64 + l), [64] high bits, [16] signed scales of
/// 16 elements, their scale.
struct Q6_K {
  static constexpr int kBytes = 210, kElements = 256;
  __host__ __device__ static int quant(const uint8_t* block, int i) {
    const int low = block[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15;
    return low | (block[128 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) << 4;
  }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float scale = half_at(block + 208) * static_cast<float>(static_cast<int8_t>(block[192 + first / 16]));
    for (int i = 0; i < 8; ++i) to[i] = scale * static_cast<float>(quant(block, first + i) - 32);
  }
};

/// Scale, high bits of 6-bit scales of 32 elements (bits 2j and 2j + 1), low ones (nibbles), [128] nibbles, 16 bytes
/// for 32 elements as in the types of 32.
struct IQ4_XS {
  static constexpr int kBytes = 136, kElements = 256;
  __host__ __device__ static int quant(const uint8_t* block, int i) {
    return block[8 + i / 32 * 16 + i % 16] >> i % 32 / 16 * 4 & 15;
  }
  /// Of the elements 32 j to 32 j + 31: -32 to 31.
  __host__ __device__ static int scale(const uint8_t* block, int j) {
    const int low = block[4 + j / 2] >> j % 2 * 4 & 15, high = (block[2] | block[3] << 8) >> 2 * j & 3;
    return (low | high << 4) - 32;
  }
  __host__ __device__ static void eight(const uint8_t* block, int first, float* to) {
    const float own = half_at(block) * static_cast<float>(scale(block, first / 32));
    for (int i = 0; i < 8; ++i) to[i] = own * static_cast<float>(Iq4Table::value(quant(block, first + i)));
  }
};

}  // namespace tidal::cuda
