// ggml's types of weights in blocks of 32, and their quants by AVX512. For files that compile for x86-64 alone.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define TIDAL_BLOCK_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"), always_inline)) inline

namespace tidal {

// Half-precision scale d, for some types a minimum m beside it, the fifth bits, then the quants. Low nibbles are
// elements 0 to 15, high ones 16 to 31. An element is d * (quant - kOffset), or d * quant + m.
struct Q4_0 {
  static constexpr int kBytes = 18, kOffset = 8, kQuants = 2, kFifth = 0;
  static constexpr bool kMinimum = false, kNibbles = true;
};
struct Q4_1 {
  static constexpr int kBytes = 20, kOffset = 0, kQuants = 4, kFifth = 0;
  static constexpr bool kMinimum = true, kNibbles = true;
};
struct Q5_0 {
  static constexpr int kBytes = 22, kOffset = 16, kQuants = 6, kFifth = 2;
  static constexpr bool kMinimum = false, kNibbles = true;
};
struct Q5_1 {
  static constexpr int kBytes = 24, kOffset = 0, kQuants = 8, kFifth = 4;
  static constexpr bool kMinimum = true, kNibbles = true;
};
struct Q8_0 {
  static constexpr int kBytes = 34, kOffset = 128, kQuants = 2, kFifth = 0;
  static constexpr bool kMinimum = false, kNibbles = false;
};

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// The 64 quants of two blocks as unsigned bytes.
template <typename Type>
TIDAL_BLOCK_INLINE __m512i unpack(const std::byte* block) {
  const std::byte* first = block + Type::kQuants;
  const std::byte* second = first + Type::kBytes;
  if constexpr (!Type::kNibbles) {
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first))),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
    return _mm512_xor_si512(both, _mm512_set1_epi8(static_cast<char>(0x80)));  // int8 + 128
  } else {
    const __m256i a = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first)));
    const __m256i b = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(second)));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    const __m512i shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    const __m512i nibbles = _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(0x0f));
    if constexpr (Type::kFifth == 0) return nibbles;
    const auto low = load<uint32_t>(block + Type::kFifth), high = load<uint32_t>(block + Type::kBytes + Type::kFifth);
    const __mmask64 fifth = static_cast<uint64_t>(high) << 32 | low;
    return _mm512_mask_add_epi8(nibbles, fifth, nibbles, _mm512_set1_epi8(16));
  }
}

}  // namespace tidal
