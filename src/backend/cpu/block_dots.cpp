#include "backend/cpu/block_dots.h"

#include "core/error.h"

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

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

constexpr int kRows = 4;       // weight rows that one pass over the activations takes along
constexpr int kAhead = 16384;  // bytes: four rows read at once are no stream that the hardware would run ahead of

/// Half-precision numbers at `offset` in two blocks of four rows: [row 0 first, row 0 second, row 1 first, ...].
template <typename Type>
TIDAL_INLINE __m256 load_halves(const std::byte* const* rows, int offset) {
  const auto at = [&](int r, int block) { return load<short>(rows[r] + block * Type::kBytes + offset); };
  const __m128i halves = _mm_setr_epi16(at(0, 0), at(0, 1), at(1, 0), at(1, 1), at(2, 0), at(2, 1), at(3, 0), at(3, 1));
  return _mm256_cvtph_ps(halves);
}

/// Sums of each of four vectors.
TIDAL_INLINE __m128 lane_sums(const __m512 v[kRows]) {
  const auto fold = [](__m512 x) TIDAL_TARGET {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  };
  const __m128 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

/// Four weight rows with kX rows of activations.
template <typename Type, int kX>
class FourRows {
 public:
  TIDAL_INLINE FourRows() {
    for (int x = 0; x < kX; ++x) {
      for (int r = 0; r < kRows; ++r) sums_[x][r] = _mm512_setzero_ps();
      minimums_[x] = _mm256_setzero_ps();
    }
  }

  /// Adds two blocks of each row.
  TIDAL_INLINE void add(const std::byte* const* rows, const ActivationPair* const* x, int64_t pair) {
    const __m512 scales = _mm512_castps256_ps512(load_halves<Type>(rows, 0));
    for (int r = 0; r < kRows; ++r) {
      const __m512i quants = unpack<Type>(rows[r]);
      const __m512 scale = _mm512_permutexvar_ps(kTwice[r], scales);
      for (int i = 0; i < kX; ++i) {
        const ActivationPair& a = x[i][pair];
        const __m512i dot = _mm512_dpbusd_epi32(_mm512_load_si512(a.start), quants, _mm512_load_si512(a.q));
        const __m512 factor = _mm512_mul_ps(scale, _mm512_load_ps(a.scale));
        sums_[i][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, sums_[i][r]);
      }
    }
    if constexpr (Type::kMinimum) {
      const __m256 minimums = load_halves<Type>(rows, 2);
      for (int i = 0; i < kX; ++i) {
        minimums_[i] = _mm256_fmadd_ps(minimums, _mm256_load_ps(x[i][pair].sums), minimums_[i]);
      }
    }
  }

  TIDAL_INLINE __m128 result(int x) const {
    __m128 sums = lane_sums(sums_[x]);
    if constexpr (Type::kMinimum) {
      const __m128 low = _mm256_castps256_ps128(minimums_[x]), high = _mm256_extractf128_ps(minimums_[x], 1);
      sums = _mm_add_ps(sums, _mm_add_ps(_mm_shuffle_ps(low, high, 0x88), _mm_shuffle_ps(low, high, 0xdd)));
    }
    return sums;
  }

 private:
  // Eight times element 2r, then eight times 2r + 1.
  static inline const __m512i kTwice[kRows] = {
      __m512i{0, 0, 0, 0, 0x100000001, 0x100000001, 0x100000001, 0x100000001},
      __m512i{0x200000002, 0x200000002, 0x200000002, 0x200000002, 0x300000003, 0x300000003, 0x300000003, 0x300000003},
      __m512i{0x400000004, 0x400000004, 0x400000004, 0x400000004, 0x500000005, 0x500000005, 0x500000005, 0x500000005},
      __m512i{0x600000006, 0x600000006, 0x600000006, 0x600000006, 0x700000007, 0x700000007, 0x700000007, 0x700000007}};

  __m512 sums_[kX][kRows];
  __m256 minimums_[kX];
};

template <typename Type, int kX>
TIDAL_TARGET void dots(const Weight& weight, int64_t first, int count, const ActivationPair* const* x, float* results,
                       int stride) {
  const int64_t blocks = weight.cols / 32;
  const size_t row_bytes = weight.row_bytes();
  const std::byte* start = weight.row(first);
  for (int o = 0; o < count; o += kRows) {
    const std::byte* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = start + row_bytes * static_cast<size_t>(std::min(o + r, count - 1));
    const char* ahead = reinterpret_cast<const char*>(rows[0]) + kAhead;
    FourRows<Type, kX> four;
    for (int64_t pair = 0; pair < blocks / 2; ++pair) {
      for (int b = 0; b < kRows * 2 * Type::kBytes; b += 64) _mm_prefetch(ahead + b, _MM_HINT_T1);
      ahead += kRows * 2 * Type::kBytes;
      four.add(rows, x, pair);
      for (auto& row : rows) row += 2 * Type::kBytes;
    }
    if (blocks % 2 != 0) {
      // Nothing may be read behind the last block: it is joined by one of zeros.
      std::byte last[kRows][2 * Type::kBytes] = {};
      const std::byte* joined[kRows];
      for (int r = 0; r < kRows; ++r) joined[r] = std::copy_n(rows[r], Type::kBytes, last[r]) - Type::kBytes;
      four.add(joined, x, blocks / 2);
    }
    for (int i = 0; i < kX; ++i) {
      float* to = results + static_cast<std::ptrdiff_t>(i) * stride + o;
      const __m128 sums = four.result(i);
      _mm_mask_storeu_ps(to, static_cast<__mmask8>((1u << std::min(kRows, count - o)) - 1), sums);
    }
  }
}

template <typename Type>
void dots_of_rows(const Weight& weight, int64_t first, int count, const ActivationPair* const* x, int rows,
                  float* results, int stride) {
  switch (rows) {
    case 1: return dots<Type, 1>(weight, first, count, x, results, stride);
    case 2: return dots<Type, 2>(weight, first, count, x, results, stride);
    case 3: return dots<Type, 3>(weight, first, count, x, results, stride);
    case 4: return dots<Type, 4>(weight, first, count, x, results, stride);
    default: fail("block dots: {} rows of activations, at most {}", rows, kMaxBlockDotRows);
  }
}

int offset_of(ggml_type type) {
  switch (type) {
    case GGML_TYPE_Q4_0: return Q4_0::kOffset;
    case GGML_TYPE_Q5_0: return Q5_0::kOffset;
    case GGML_TYPE_Q8_0: return Q8_0::kOffset;
    default: return 0;
  }
}

TIDAL_TARGET void quantise_block(const float* x, int offset, int half, ActivationPair& to) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  // 0 unless something is not finite.
  const __m512 poison = _mm512_mul_ps(_mm512_add_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)), _mm512_setzero_ps());
  const float scale = top / 127.0f + _mm512_reduce_add_ps(poison);
  const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
  const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  auto* q = reinterpret_cast<__m128i*>(to.q + 32 * half);
  _mm_store_si128(q, _mm512_cvtsepi32_epi8(qa));
  _mm_store_si128(q + 1, _mm512_cvtsepi32_epi8(qb));
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to.start + 8 * half),
                     _mm256_setr_epi32(-offset * sum, 0, 0, 0, 0, 0, 0, 0));
  _mm256_store_ps(to.scale + 8 * half, _mm256_set1_ps(scale));
  for (int i = half; i < 8; i += 2) to.sums[i] = scale * static_cast<float>(sum);
}

}  // namespace

bool has_block_dots(ggml_type type) {
  // Not every clang can ask for F16C; every CPU with AVX512 has it.
  static const bool have = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (type) {
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_Q4_1:
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q5_1:
    case GGML_TYPE_Q8_0: return have;
    default: return false;
  }
}

void quantise_for_block_dots(ggml_type type, const float* x, int width, ActivationPair* to) {
  const int offset = offset_of(type);
  const int blocks = width / 32;
  for (int b = 0; b < blocks; ++b) quantise_block(x + 32 * b, offset, b % 2, to[b / 2]);
  if (blocks % 2 == 0) return;
  const float zeros[32] = {};
  quantise_block(zeros, offset, 1, to[blocks / 2]);
}

void block_dots(const Weight& weight, int64_t first, int count, const ActivationPair* const* x, int rows,
                float* results, int stride) {
  switch (weight.type) {
    case GGML_TYPE_Q4_0: return dots_of_rows<Q4_0>(weight, first, count, x, rows, results, stride);
    case GGML_TYPE_Q4_1: return dots_of_rows<Q4_1>(weight, first, count, x, rows, results, stride);
    case GGML_TYPE_Q5_0: return dots_of_rows<Q5_0>(weight, first, count, x, rows, results, stride);
    case GGML_TYPE_Q5_1: return dots_of_rows<Q5_1>(weight, first, count, x, rows, results, stride);
    case GGML_TYPE_Q8_0: return dots_of_rows<Q8_0>(weight, first, count, x, rows, results, stride);
    default: fail("block dots: {} has no kernel", ggml_type_name(weight.type));
  }
}

}  // namespace tidal

#else

namespace tidal {

bool has_block_dots(ggml_type) { return false; }
void quantise_for_block_dots(ggml_type type, const float*, int, ActivationPair*) {
  fail("block dots: {} has no kernel on this processor", ggml_type_name(type));
}
void block_dots(const Weight& weight, int64_t, int, const ActivationPair* const*, int, float*, int) {
  fail("block dots: {} has no kernel on this processor", ggml_type_name(weight.type));
}

}  // namespace tidal

#endif
