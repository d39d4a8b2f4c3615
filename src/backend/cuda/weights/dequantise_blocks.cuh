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

}  // namespace tidal::cuda
