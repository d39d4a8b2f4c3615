// A tile of a quantised matrix: 8 rows by 128 columns, as the tensor core's lanes take them. An element is scale *
// code, plus a minimum where its type has one; codes have 4, 5, 6 or 8 bits, with a sign where there is no minimum. Or
// they are nibbles that a table makes bytes with a sign of.
//
// Lane 4 g + t has 32 elements of row g: in each of four runs of 32 columns 4 neighbours in either half of the run, so
// that a half may have a scale of its own. A tile has, in this order:
//   codes   [32 lanes] 16 bytes: word j has the upper 4 bits of run j's codes, byte i those of elements i (low nibble)
//           and 4 + i; with a table nibble i that of element i. Codes of 8 bits: [2][32 lanes] 16 bytes, the elements
//           of two runs in their order.
//   scales  [8 rows] of each run, see Scales.
//   low     of 5 bits: [32 lanes] 4 bytes, the last bit of elements i and 4 + i of run j in byte i, bits 2j and 2j + 1.
//           Of 6 bits: [2][32 lanes] 4 bytes, the last two of two runs', in bits 4j to 4j + 3.
// A lane's bytes of a piece are thus its own, and all that a warp copies lies in one run.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <type_traits>

#include "backend/cuda/weights/dequantise_blocks.cuh"

namespace tidal::cuda::tiles {

enum class Scales {
  One,      ///< float16 a run
  Minimum,  ///< float16 scale and minimum a run
  Nested,   ///< bytes of scale and minimum a run; then [8 rows] float16 of both: scale * byte, -(minimum * byte)
  Halves,   ///< signed bytes of the two halves of a run; then [8 rows] float16 scale and two bytes of nothing
  Signed,   ///< a signed byte a run; then [8 rows] float16 scale and two bytes of nothing
  Power,    ///< a byte a run: half_power() of it
};

/// In place of a table: codes are values.
struct NoTable {};

/// The column in a tile of element `i` (0 to 31) of lanes t.
__host__ __device__ inline int column(int t, int i) { return i / 8 * 32 + i % 8 / 4 * 16 + t * 4 + i % 4; }

/// Where things lie in a tile whose codes have so many bits.
template <int kBitsOf, Scales kScalesOf, class TableOf = NoTable>
struct Tile {
  static constexpr int kBits = kBitsOf;
  static constexpr Scales kScales = kScalesOf;
  using Values = TableOf;
  static constexpr bool kLooksUp = !std::is_same_v<Values, NoTable>;
  static constexpr bool kHalves = kScales == Scales::Halves;
  static constexpr bool kPerRun = kScales == Scales::Signed || kScales == Scales::Power;
  static constexpr bool kMinimum = kScales == Scales::Minimum || kScales == Scales::Nested;
  static constexpr int kCodes = kBits == 8 ? 1024 : 512;
  static constexpr int kScaleRow = kScales == Scales::Minimum ? 16 : kPerRun ? 4 : 8;  // bytes a row
  static constexpr bool kNested = kScales == Scales::Nested || kScales == Scales::Signed || kHalves;
  static constexpr int kScaleBytes = 8 * kScaleRow + (kNested ? 32 : 0);
  static constexpr int kLow = kBits == 5 ? 128 : kBits == 6 ? 256 : 0;
  static constexpr int kSide = kScaleBytes + kLow;  // what is behind the codes
  static constexpr int kBytes = kCodes + kSide;

  /// Where in a lane's word of a run the upper 4 bits of an element are.
  __host__ __device__ static constexpr int nibble(int i) { return kLooksUp ? 4 * i : i % 4 * 8 + i / 4 * 4; }
  /// The codes of a lane in run `run`, or what the table has for them.
  __host__ __device__ static void codes(const uint8_t* tile, int lane, int run, int* to) {
    const auto word_at = [&](int byte) { return *reinterpret_cast<const uint32_t*>(tile + byte); };
    if constexpr (kBits == 8) {
      const int at = run / 2 * 512 + lane * 16 + run % 2 * 8;
      for (int i = 0; i < 8; ++i) to[i] = static_cast<int8_t>(word_at(at + i / 4 * 4) >> i % 4 * 8);
    } else {
      const uint32_t word = word_at(lane * 16 + run * 4);
      uint32_t low = 0;
      if constexpr (kLow > 0) low = word_at(kCodes + kScaleBytes + (kBits == 6 ? run / 2 * 128 : 0) + lane * 4);
      for (int i = 0; i < 8; ++i) {
        const int byte = i % 4 * 8, second = i / 4;
        int code = word >> nibble(i) & 15;
        if constexpr (kLooksUp) {
          to[i] = Values::value(code);
          continue;
        }
        if constexpr (kBits == 5) code = code << 1 | (low >> (byte + 2 * run + second) & 1);
        if constexpr (kBits == 6) code = code << 2 | (low >> (byte + 4 * (run % 2) + 2 * second) & 3);
        constexpr int kSign = 1 << (kBits - 1);
        to[i] = kMinimum ? code : (code ^ kSign) - kSign;
      }
    }
  }
  /// Eight elements of a lane in run `run`, in ggml's order of products and sums (no product may be fused with a sum).
  __host__ __device__ static void eight(const uint8_t* tile, int lane, int run, float* to) {
    const int row = lane / 4;
    const uint8_t* scales = tile + kCodes + row * kScaleRow;
    const uint8_t* outer = tile + kCodes + 8 * kScaleRow + row * 4;
    float scale[2], minimum = 0;
    if constexpr (kScales == Scales::One) scale[0] = scale[1] = half_at(scales + 2 * run);
    if constexpr (kScales == Scales::Minimum) {
      scale[0] = scale[1] = half_at(scales + 4 * run);
      minimum = half_at(scales + 4 * run + 2);
    }
    if constexpr (kScales == Scales::Nested) {
      scale[0] = scale[1] = half_at(outer) * static_cast<float>(scales[2 * run]);
      minimum = -(half_at(outer + 2) * static_cast<float>(scales[2 * run + 1]));
    }
    if constexpr (kScales == Scales::Signed) {
      scale[0] = scale[1] = half_at(outer) * static_cast<float>(static_cast<int8_t>(scales[run]));
    }
    if constexpr (kScales == Scales::Power) scale[0] = scale[1] = half_power(scales[run]);
    if constexpr (kHalves) {
      for (int i = 0; i < 2; ++i) {
        scale[i] = half_at(outer) * static_cast<float>(static_cast<int8_t>(scales[2 * run + i]));
      }
    }
    int all[8];
    codes(tile, lane, run, all);
    for (int i = 0; i < 8; ++i) {
      const float value = static_cast<float>(all[i]) * scale[i / 4];
      to[i] = kMinimum ? value + minimum : value;
    }
  }
};

// The types: kBlock and kBlockBytes are ggml's, code(block, i) has the bits of that of element i of a block, and
// scales(block, i, to, outer) writes those of the run that begins with element i.

template <bool kWithMinimum, bool kFifth>
struct Nibbles32 : Tile<kFifth ? 5 : 4, kWithMinimum ? Scales::Minimum : Scales::One> {
  using Block = Nibbles<kWithMinimum, kFifth, 0>;  // the offset is in the sign here
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) {
    const int code = Block::quant(block, i);
    return kWithMinimum ? code : code ^ (kFifth ? 16 : 8);
  }
  __host__ __device__ static void scales(const uint8_t* block, int, uint8_t* to, uint8_t*) {
    for (int i = 0; i < Block::kHead; ++i) to[i] = block[i];
  }
};
using Q4_0 = Nibbles32<false, false>;
using Q4_1 = Nibbles32<true, false>;
using Q5_0 = Nibbles32<false, true>;
using Q5_1 = Nibbles32<true, true>;

struct Q8_0 : Tile<8, Scales::One> {
  using Block = cuda::Q8_0;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i) & 255; }
  __host__ __device__ static void scales(const uint8_t* block, int, uint8_t* to, uint8_t*) {
    to[0] = block[0];
    to[1] = block[1];
  }
};

template <bool kFifth>
struct Nibbles256 : Tile<kFifth ? 5 : 4, Scales::Nested> {
  using Block = NibblesOf256<kFifth>;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i); }
  __host__ __device__ static void scales(const uint8_t* block, int i, uint8_t* to, uint8_t* outer) {
    to[0] = static_cast<uint8_t>(Block::scale(block, i / 32));
    to[1] = static_cast<uint8_t>(Block::minimum(block, i / 32));
    for (int b = 0; b < 4; ++b) outer[b] = block[b];
  }
};
using Q4_K = Nibbles256<false>;
using Q5_K = Nibbles256<true>;

struct Q6_K : Tile<6, Scales::Halves> {
  using Block = cuda::Q6_K;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i) ^ 32; }
  __host__ __device__ static void scales(const uint8_t* block, int i, uint8_t* to, uint8_t* outer) {
    to[0] = block[192 + i / 16];
    to[1] = block[193 + i / 16];
    outer[0] = block[208];
    outer[1] = block[209];
    outer[2] = outer[3] = 0;
  }
};

struct IQ4_NL : Tile<4, Scales::One, Iq4Table> {
  using Block = cuda::IQ4_NL;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i); }
  __host__ __device__ static void scales(const uint8_t* block, int, uint8_t* to, uint8_t*) {
    to[0] = block[0];
    to[1] = block[1];
  }
};

struct IQ4_XS : Tile<4, Scales::Signed, Iq4Table> {
  using Block = cuda::IQ4_XS;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i); }
  __host__ __device__ static void scales(const uint8_t* block, int i, uint8_t* to, uint8_t* outer) {
    to[0] = static_cast<uint8_t>(Block::scale(block, i / 32));
    outer[0] = block[0];
    outer[1] = block[1];
    outer[2] = outer[3] = 0;
  }
};

struct MXFP4 : Tile<4, Scales::Power, Float4Table> {
  using Block = cuda::MXFP4;
  static constexpr int kBlock = Block::kElements, kBlockBytes = Block::kBytes;
  __host__ __device__ static int code(const uint8_t* block, int i) { return Block::quant(block, i); }
  __host__ __device__ static void scales(const uint8_t* block, int, uint8_t* to, uint8_t*) { to[0] = block[0]; }
};

/// Calls body(a value of the type's struct); false for a type that has none.
template <typename Body>
bool with_type(ggml_type type, Body&& body) {
  switch (type) {
    case GGML_TYPE_Q4_0: return body(Q4_0{}), true;
    case GGML_TYPE_Q4_1: return body(Q4_1{}), true;
    case GGML_TYPE_Q5_0: return body(Q5_0{}), true;
    case GGML_TYPE_Q5_1: return body(Q5_1{}), true;
    case GGML_TYPE_Q8_0: return body(Q8_0{}), true;
    case GGML_TYPE_Q4_K: return body(Q4_K{}), true;
    case GGML_TYPE_Q5_K: return body(Q5_K{}), true;
    case GGML_TYPE_Q6_K: return body(Q6_K{}), true;
    case GGML_TYPE_IQ4_NL: return body(IQ4_NL{}), true;
    case GGML_TYPE_IQ4_XS: return body(IQ4_XS{}), true;
    case GGML_TYPE_MXFP4: return body(MXFP4{}), true;
    default: return false;
  }
}

}  // namespace tidal::cuda::tiles
