#include "backend/cpu/dequantise_bf16.h"

#if defined(__x86_64__)

// GCC's own header starts intrinsics from a variable that it leaves uninitialised on purpose, and warns of it here.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "backend/cpu/blocks_of_32.h"

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))
#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

// Quants of at most 5 bits take 32 values at most, which one vector of bf16 holds: the values of a block are computed
// once and looked up for each of its elements.

TIDAL_INLINE float half_at(const std::byte* from) { return _cvtsh_ss(load<unsigned short>(from)); }

TIDAL_INLINE __m512i to_bf16(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

TIDAL_INLINE __m512 count_from(int first) {
  const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_cvtepi32_ps(_mm512_add_epi32(steps, _mm512_set1_epi32(first)));
}

/// scale * (quant - offset) for the quants 0 to 31, or 0 to 15 where only those occur.
template <bool kFifth>
TIDAL_INLINE __m512i value_table(float scale, int offset) {
  const __m512 d = _mm512_set1_ps(scale);
  const __m512 low = _mm512_mul_ps(count_from(-offset), d);
  return to_bf16(low, kFifth ? _mm512_mul_ps(count_from(16 - offset), d) : low);
}

/// scale * quant + minimum, likewise.
template <bool kFifth>
TIDAL_INLINE __m512i value_table(float scale, float minimum) {
  const __m512 d = _mm512_set1_ps(scale), m = _mm512_set1_ps(minimum);
  const __m512 low = _mm512_fmadd_ps(count_from(0), d, m);
  return to_bf16(low, kFifth ? _mm512_fmadd_ps(count_from(16), d, m) : low);
}

TIDAL_INLINE __m512i look_up(__m512i table, __m256i quants) {
  return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(quants), table);
}

/// scale * (quant - offset) for 16 quants.
TIDAL_INLINE __m512 scaled(__m128i quants, int offset, float scale) {
  const __m512i centred = _mm512_sub_epi32(_mm512_cvtepu8_epi32(quants), _mm512_set1_epi32(offset));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(scale));
}

template <typename Type>
TIDAL_INLINE __m512i block_of_32(const std::byte* block, __m256i quants) {
  const float scale = half_at(block);
  if constexpr (Type::kNibbles) {
    constexpr bool kFifth = Type::kFifth != 0;
    if constexpr (Type::kMinimum) return look_up(value_table<kFifth>(scale, half_at(block + 2)), quants);
    return look_up(value_table<kFifth>(scale, Type::kOffset), quants);
  } else {
    return to_bf16(scaled(_mm256_castsi256_si128(quants), Type::kOffset, scale),
                   scaled(_mm256_extracti128_si256(quants, 1), Type::kOffset, scale));
  }
}

template <typename Type>
TIDAL_TARGET void blocks_of_32(const std::byte* from, int64_t count, Bf16* to) {
  const auto pair = [](const std::byte* blocks, __m512i values[2]) TIDAL_TARGET {
    const __m512i quants = unpack<Type>(blocks);
    values[0] = block_of_32<Type>(blocks, _mm512_castsi512_si256(quants));
    values[1] = block_of_32<Type>(blocks + Type::kBytes, _mm512_extracti64x4_epi64(quants, 1));
  };
  __m512i values[2];
  for (; count >= 64; count -= 64) {
    pair(from, values);
    _mm512_storeu_si512(to, values[0]);
    _mm512_storeu_si512(to + 32, values[1]);
    from += 2 * Type::kBytes;
    to += 64;
  }
  if (count > 0) {
    // Nothing may be read behind the last block.
    std::byte last[2 * Type::kBytes] = {};
    std::copy_n(from, Type::kBytes, last);
    pair(last, values);
    _mm512_storeu_si512(to, values[0]);
  }
}

/// The eight 6-bit scales and minimums of a block of q4_K or q5_K, in ggml's packing of 12 bytes.
TIDAL_INLINE void unpack_scales(const std::byte* from, uint8_t scales[8], uint8_t minimums[8]) {
  const auto byte = [&](int i) { return static_cast<uint8_t>(from[i]); };
  for (int i = 0; i < 4; ++i) {
    scales[i] = byte(i) & 63;
    minimums[i] = byte(i + 4) & 63;
    scales[i + 4] = (byte(i + 8) & 15) | (byte(i) >> 6) << 4;
    minimums[i + 4] = byte(i + 8) >> 4 | (byte(i + 4) >> 6) << 4;
  }
}

/// q4_K and q5_K: scale, minimum, 12 bytes of 6-bit scales and minimums of 32 elements each, the fifth bits (bit j of
/// byte l belongs to element 32 j + l), nibbles (two times 32 elements share 32 bytes).
template <bool kFifth>
TIDAL_TARGET void blocks_with_minimums(const std::byte* from, int64_t count, Bf16* to) {
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  for (; count > 0; count -= 256) {
    const float scale = half_at(from), minimum = half_at(from + 2);
    uint8_t scales[8], minimums[8];
    unpack_scales(from + 4, scales, minimums);
    __m256i fifth = _mm256_setzero_si256();
    if constexpr (kFifth) fifth = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16));
    const std::byte* quants = from + (kFifth ? 48 : 16);
    for (int j = 0; j < 8; ++j) {
      __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + j / 2 * 32));
      q = _mm256_and_si256(j % 2 == 0 ? q : _mm256_srli_epi16(q, 4), nibble);
      if constexpr (kFifth) {
        const __mmask32 set = _mm256_test_epi8_mask(fifth, _mm256_set1_epi8(static_cast<char>(1 << j)));
        q = _mm256_mask_add_epi8(q, set, q, _mm256_set1_epi8(16));
      }
      const __m512i table = value_table<kFifth>(scale * scales[j], -(minimum * minimums[j]));
      _mm512_storeu_si512(to + 32 * j, look_up(table, q));
    }
    from = quants + 128;
    to += 256;
  }
}

/// q6_K: low nibbles [2][64], high bits [2][32], signed scales [2][8] of 16 elements, the scale of all.
TIDAL_TARGET void blocks_of_6_bits(const std::byte* from, int64_t count, Bf16* to) {
  constexpr int kBytes = 210;
  const __m256i nibble = _mm256_set1_epi8(0x0f), two_bits = _mm256_set1_epi8(0x30);
  for (; count > 0; count -= 256) {
    const float scale = half_at(from + kBytes - 2);
    for (int half = 0; half < 2; ++half) {
      const auto* low = reinterpret_cast<const __m256i*>(from + 64 * half);
      const __m256i a = _mm256_loadu_si256(low), b = _mm256_loadu_si256(low + 1);
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 128 + 32 * half));
      const __m256i nibbles[4] = {a, b, _mm256_srli_epi16(a, 4), _mm256_srli_epi16(b, 4)};
      const __m256i bits[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                               _mm256_srli_epi16(high, 2)};
      const std::byte* scales = from + 192 + 8 * half;
      for (int j = 0; j < 4; ++j) {
        const __m256i q = _mm256_or_si256(_mm256_and_si256(nibbles[j], nibble), _mm256_and_si256(bits[j], two_bits));
        const __m512 first = scaled(_mm256_castsi256_si128(q), 32, scale * load<int8_t>(scales + 2 * j));
        const __m512 second = scaled(_mm256_extracti128_si256(q, 1), 32, scale * load<int8_t>(scales + 2 * j + 1));
        _mm512_storeu_si512(to + 128 * half + 32 * j, to_bf16(first, second));
      }
    }
    from += kBytes;
    to += 256;
  }
}

}  // namespace

bool dequantise_to_bf16(ggml_type type, const std::byte* from, int64_t count, Bf16* to) {
  // Not every clang can ask for F16C; every CPU with AVX512 has it.
  static const bool have = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!have) return false;
  switch (type) {
    case GGML_TYPE_Q4_0: blocks_of_32<Q4_0>(from, count, to); return true;
    case GGML_TYPE_Q4_1: blocks_of_32<Q4_1>(from, count, to); return true;
    case GGML_TYPE_Q5_0: blocks_of_32<Q5_0>(from, count, to); return true;
    case GGML_TYPE_Q5_1: blocks_of_32<Q5_1>(from, count, to); return true;
    case GGML_TYPE_Q8_0: blocks_of_32<Q8_0>(from, count, to); return true;
    case GGML_TYPE_Q4_K: blocks_with_minimums<false>(from, count, to); return true;
    case GGML_TYPE_Q5_K: blocks_with_minimums<true>(from, count, to); return true;
    case GGML_TYPE_Q6_K: blocks_of_6_bits(from, count, to); return true;
    default: return false;
  }
}

}  // namespace tidal

#else

namespace tidal {
bool dequantise_to_bf16(ggml_type, const std::byte*, int64_t, Bf16*) { return false; }
}  // namespace tidal

#endif
