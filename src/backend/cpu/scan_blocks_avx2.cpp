#include "backend/cpu/scan_blocks.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/hyperparameters.h"

#define TIDAL_TARGET __attribute__((target("avx2,fma")))
#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

constexpr int kMaxDim = kMostHeadDim;
constexpr int kMaxHeads = 8;  // whose sums fit in registers together
constexpr int kLanes = 8;     // positions of a vector of codes
constexpr int kMost = 127;    // of a weight

/// What of one block belongs to the query heads: see sketch_query().
struct Prepared {
  alignas(32) int8_t weights[kMaxHeads][kMaxDim];  // 0 behind head_dim
  float base[kMaxHeads], factor[kMaxHeads];
};

TIDAL_INLINE __m256 load_bf16(const std::byte* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <typename Operation>
TIDAL_INLINE float reduce(__m256 v, const Operation& operation) {
  __m128 x = operation(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = operation(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(operation(x, _mm_shuffle_ps(x, x, 1)));
}

/// Eight weights as 32-bit integers; 0 where the product has none.
TIDAL_INLINE __m256i weights_of(__m256 scaled, __m256 inverse) {
  const __m256 product = _mm256_mul_ps(scaled, inverse);
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), product);
  const __m256 known = _mm256_cmp_ps(size, _mm256_set1_ps(kMost + 0.5f), _CMP_LT_OQ);  // NaN is not less
  return _mm256_and_si256(_mm256_cvtps_epi32(product), _mm256_castps_si256(known));
}

TIDAL_INLINE void prepare(const float* q, int heads, int dim, const std::byte* sketch, Prepared& to) {
  const std::byte* const scales = sketch + 2 * dim;
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const auto sum = [](__m128 a, __m128 b) TIDAL_TARGET { return _mm_add_ps(a, b); };
  const auto greater = [](__m128 a, __m128 b) TIDAL_TARGET { return _mm_max_ps(a, b); };
  for (int h = 0; h < heads; ++h, q += dim) {
    __m256 low = _mm256_setzero_ps(), high = low, top = low;
    for (int d = 0; d < dim; d += 16) {
      const __m256 q0 = _mm256_loadu_ps(q + d), q1 = _mm256_loadu_ps(q + d + 8);
      low = _mm256_fmadd_ps(q0, load_bf16(sketch + 2 * d), low);
      high = _mm256_fmadd_ps(q1, load_bf16(sketch + 2 * d + 16), high);
      // The second operand where one is NaN.
      top = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_mul_ps(q0, load_bf16(scales + 2 * d))), top);
      top = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_mul_ps(q1, load_bf16(scales + 2 * d + 16))), top);
    }
    const float most = reduce(top, greater);
    to.base[h] = reduce(_mm256_add_ps(low, high), sum);
    to.factor[h] = most / kMost;
    const __m256 inverse = _mm256_set1_ps(most > 0 ? kMost / most : 0.0f);
    for (int d = 0; d < dim; d += 16) {
      const __m256i w0 = weights_of(_mm256_mul_ps(_mm256_loadu_ps(q + d), load_bf16(scales + 2 * d)), inverse);
      const __m256i w1 = weights_of(_mm256_mul_ps(_mm256_loadu_ps(q + d + 8), load_bf16(scales + 2 * d + 16)), inverse);
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(w0, w1), 0xd8);
      _mm_store_si128(reinterpret_cast<__m128i*>(to.weights[h] + d),
                      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
  }
}

template <int kBits, int kHeads>
TIDAL_INLINE void score(const SketchLayout& layout, const std::byte* codes, const Prepared& of, float* scores,
                        std::ptrdiff_t stride) {
  constexpr int kPlanes = 8 / kBits;
  // Products of two codes with their weights are summed in 16 bits, for so many vectors.
  constexpr int kSafe = INT16_MAX / (2 * kMost * ((1 << kBits) - 1)) / kPlanes;
  static_assert(kSafe > 0);
  const int vectors = layout.vectors();
  const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1), ones = _mm256_set1_epi16(1);
  for (int p = 0; p < kBlockTokens; p += kLanes) {
    const std::byte* const own =
        codes + p / SketchLayout::kStripe * vectors * SketchLayout::kVector + p % SketchLayout::kStripe * 4;
    __m256i dots[kHeads];
    for (int h = 0; h < kHeads; ++h) dots[h] = _mm256_setzero_si256();
    for (int first = 0; first < vectors; first += kSafe) {
      __m256i sums[kHeads];
      for (int h = 0; h < kHeads; ++h) sums[h] = _mm256_setzero_si256();
      const int end = std::min(first + kSafe, vectors);
      for (int v = first; v < end; ++v) {
        const __m256i planes =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own + std::ptrdiff_t{v} * SketchLayout::kVector));
        for (int plane = 0; plane < kPlanes; ++plane) {
          const __m256i code = _mm256_and_si256(_mm256_srli_epi16(planes, plane * kBits), mask);
          for (int h = 0; h < kHeads; ++h) {
            int32_t quad;
            std::memcpy(&quad, of.weights[h] + (v * kPlanes + plane) * SketchLayout::kQuad, sizeof quad);
            sums[h] = _mm256_add_epi16(sums[h], _mm256_maddubs_epi16(code, _mm256_set1_epi32(quad)));
          }
        }
      }
      for (int h = 0; h < kHeads; ++h) dots[h] = _mm256_add_epi32(dots[h], _mm256_madd_epi16(sums[h], ones));
    }
    for (int h = 0; h < kHeads; ++h) {
      _mm256_storeu_ps(
          scores + h * stride + p,
          _mm256_fmadd_ps(_mm256_set1_ps(of.factor[h]), _mm256_cvtepi32_ps(dots[h]), _mm256_set1_ps(of.base[h])));
    }
  }
}

template <int kBits, int kHeads>
TIDAL_TARGET void scan(const ScanArgs& a) {
  Prepared prepared = {};
  for (int b = 0; b < a.blocks; ++b) {
    prepare(a.q, kHeads, a.layout.head_dim, a.sketches[b], prepared);
    score<kBits, kHeads>(a.layout, a.sketches[b] + a.layout.codes_offset(), prepared, a.scores + kBlockTokens * b,
                         a.stride);
  }
}

using Scan = void (*)(const ScanArgs&);
template <int kBits>
constexpr Scan kScan[kMaxHeads] = {scan<kBits, 1>, scan<kBits, 2>, scan<kBits, 3>, scan<kBits, 4>,
                                   scan<kBits, 5>, scan<kBits, 6>, scan<kBits, 7>, scan<kBits, 8>};

}  // namespace

bool scan_blocks_avx2(const ScanArgs& args) {
  static const bool have = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!have) return false;
  const int bits = args.layout.bits;
  const Scan* const all = bits == 1 ? kScan<1> : bits == 2 ? kScan<2> : kScan<4>;
  for_each_part(args, kMaxHeads, [&](const ScanArgs& part, int) { all[part.heads - 1](part); });
  return true;
}

}  // namespace tidal

#else

namespace tidal {
bool scan_blocks_avx2(const ScanArgs&) { return false; }
}  // namespace tidal

#endif
