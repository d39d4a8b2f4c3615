#include "backend/cpu/scan_blocks.h"

#if defined(__x86_64__)

// GCC's own header starts intrinsics from a variable that it leaves uninitialised on purpose, and warns of it here.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "backend/hyperparameters.h"

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

constexpr int kMaxDim = kMostHeadDim;
constexpr int kMaxQuads = kMaxDim / SketchLayout::kQuad;
constexpr int kMaxHeads = 8;  // whose sums fit in registers together
constexpr int kChunk = 64;    // channels whose weights fill a vector
constexpr int kStripes = kBlockTokens / SketchLayout::kStripe;
constexpr int kAhead = 4;  // blocks between the one that is asked of memory and the one in work

/// What of one block belongs to a query head: see sketch_query().
struct Prepared {
  alignas(64) int32_t weights[kMaxHeads * kMaxQuads];  // [heads][quads of channels], 0 behind head_dim
  alignas(64) float base[16];                          // head h's is element slot(h); for terms, less the reference
  alignas(64) float factor[16];
};

constexpr int slot(int head) { return head % 4 * 4 + head / 4 * 2; }

struct Add {
  TIDAL_INLINE static __m512 of(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};
struct Max {
  TIDAL_INLINE static __m512 of(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
};

/// Up to 8 vectors, each to one element by halves (8 apart, 4, 2, 1): that of vector h is element slot(h).
template <typename Operation, int kHeads>
TIDAL_INLINE __m512 reduce(const __m512 (&v)[kHeads]) {
  const auto at = [&](int h) TIDAL_TARGET { return v[std::min(h, kHeads - 1)]; };
  const auto halves = [&](int h) TIDAL_TARGET {
    return Operation::of(_mm512_shuffle_f32x4(at(h), at(h + 1), 0x44), _mm512_shuffle_f32x4(at(h), at(h + 1), 0xee));
  };
  const auto quarters = [&](int h) TIDAL_TARGET {
    const __m512 a = halves(h), b = halves(h + 2);
    return Operation::of(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  const __m512d a = _mm512_castps_pd(quarters(0)), b = kHeads > 4 ? _mm512_castps_pd(quarters(4)) : a;
  const __m512 pairs =
      Operation::of(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  return Operation::of(pairs, _mm512_permute_ps(pairs, 0xb1));
}

/// A chunk's scales in the order of the weights: element i of vector j is channel 4 i + j. Zeros behind `channels`.
TIDAL_INLINE void load_scales(const std::byte* from, int channels, __m512 scales[4]) {
  const auto part = [&](int first) TIDAL_TARGET {
    const int count = std::clamp(channels - first, 0, 32);
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), from + 2 * first);
  };
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i low_half = part(0), high_half = part(32);
  const __m512i first = _mm512_permutex2var_epi32(low_half, even, high_half);
  const __m512i second = _mm512_permutex2var_epi32(low_half, odd, high_half);
  scales[0] = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
  scales[1] = _mm512_castsi512_ps(_mm512_and_si512(first, high));
  scales[2] = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
  scales[3] = _mm512_castsi512_ps(_mm512_and_si512(second, high));
}

/// q [kHeads, dim] in the same order: [kHeads][chunk][4][16], zeros behind dim.
template <int kHeads>
TIDAL_INLINE void sort_query(const float* q, int dim, float* sorted) {
  for (int h = 0; h < kHeads; ++h, q += dim) {
    for (int d = 0; d < dim; d += kChunk, sorted += kChunk) {
      __m512 v[4];
      for (int i = 0; i < 4; ++i) v[i] = d + 16 * i < dim ? _mm512_loadu_ps(q + d + 16 * i) : _mm512_setzero_ps();
      for (int j = 0; j < 4; ++j) {
        const __m512i from = _mm512_add_epi32(
            _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28), _mm512_set1_epi32(j));
        _mm512_store_ps(sorted + 16 * j, _mm512_mask_blend_ps(0xff00, _mm512_permutex2var_ps(v[0], from, v[1]),
                                                              _mm512_permutex2var_ps(v[2], from, v[3])));
      }
    }
  }
}

/// `scale` and `reference` (in slots): of the terms; 1 and 0 for scores.
template <bool kTerms, int kHeads>
TIDAL_INLINE void prepare(const float* q, const float* sorted, int dim, const std::byte* sketch, __m512 scale,
                          __m512 reference, Prepared& to) {
  const int chunks = (dim + kChunk - 1) / kChunk;
  const std::byte* const scales_at = sketch + 2 * dim;
  __m512 bases[kHeads], tops[kHeads], scales[4];
  for (int h = 0; h < kHeads; ++h) bases[h] = tops[h] = _mm512_setzero_ps();
  for (int d = 0; d < dim; d += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sketch + 2 * d));
    const __m512 minimum = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    for (int h = 0; h < kHeads; ++h) bases[h] = _mm512_fmadd_ps(_mm512_loadu_ps(q + h * dim + d), minimum, bases[h]);
  }
  const auto scaled = [&](int h, int c, int j) TIDAL_TARGET {
    return _mm512_mul_ps(_mm512_load_ps(sorted + (h * chunks + c) * kChunk + 16 * j), scales[j]);
  };
  for (int c = 0; c < chunks; ++c) {
    load_scales(scales_at + 2 * kChunk * c, dim - kChunk * c, scales);
    for (int h = 0; h < kHeads; ++h) {
      // The greatest absolute value; where one is NaN, the other.
      for (int j = 0; j < 4; ++j) tops[h] = _mm512_range_ps(tops[h], scaled(h, c, j), 0x0b);
    }
  }
  const __m512 base = reduce<Add>(bases);
  const __m512 top = reduce<Max>(tops);
  const __m512 most = _mm512_set1_ps(127.0f);
  alignas(64) float inverse[16];
  const __m512 step = _mm512_div_ps(top, most);
  _mm512_store_ps(to.base, kTerms ? _mm512_fmsub_ps(base, scale, reference) : base);
  _mm512_store_ps(to.factor, kTerms ? _mm512_mul_ps(step, scale) : step);
  _mm512_store_ps(inverse, _mm512_maskz_div_ps(_mm512_cmp_ps_mask(top, _mm512_setzero_ps(), _CMP_GT_OQ), most, top));

  // Added to this, a small number is rounded to an integer, ties to even, whose lowest byte is the sum's. Infinity and
  // NaN end in a byte of 0.
  const __m512 magic = _mm512_set1_ps(0x1.8p23f);
  for (int c = 0; c < chunks; ++c) {
    if (chunks > 1) load_scales(scales_at + 2 * kChunk * c, dim - kChunk * c, scales);
    for (int h = 0; h < kHeads; ++h) {
      const __m512 factor = _mm512_set1_ps(inverse[slot(h)]);
      const auto integer = [&](int j) TIDAL_TARGET {
        // With a rounding mode of its own the sum is not fused with the product, which must be rounded first.
        return _mm512_castps_si512(_mm512_add_round_ps(_mm512_mul_ps(scaled(h, c, j), factor), magic,
                                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      };
      // 0xca: bits of the second where the first has ones, else of the third.
      __m512i bytes =
          _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xff), integer(0), _mm512_slli_epi32(integer(1), 8), 0xca);
      bytes = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffff), bytes, _mm512_slli_epi32(integer(2), 16), 0xca);
      bytes = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffffff), bytes, _mm512_slli_epi32(integer(3), 24), 0xca);
      _mm512_store_si512(to.weights + h * kMaxQuads + 16 * c, bytes);
    }
  }
}

/// 2^x, to 6e-7 and 0 below 2^-125. Added to 1.5 * 2^19 x becomes whole sixteenths, whose lowest bits choose of 16
/// roots and whose others go into the root's exponent; a parabola fitted on [-1/32, 1/32] does the rest. NaN stays NaN;
/// from 2^128 on it is not finite.
TIDAL_INLINE __m512 exp2_of(__m512 x) {
  // 2^(i/16), less i at the place where the exponent gets x's sixteenths.
  const __m512i roots = _mm512_sub_epi32(
      _mm512_castps_si512(_mm512_setr_ps(1.0f, 1.0442737f, 1.0905077f, 1.1387886f, 1.1892071f, 1.2418579f, 1.2968396f,
                                         1.3542556f, 1.4142135f, 1.4768262f, 1.5422108f, 1.6104903f, 1.6817929f,
                                         1.7562522f, 1.8340081f, 1.9152066f)),
      _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 19));
  const __m512 magic = _mm512_set1_ps(0x1.8p19f);
  // Up to 2^129, whose exponent is that of infinity. The second operand where one is NaN.
  x = _mm512_min_ps(_mm512_set1_ps(128.0f), x);
  const __m512 shifted = _mm512_add_ps(x, magic);
  const __m512 part = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
  const __m512i sixteenths = _mm512_castps_si512(shifted);
  const __m512 power = _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_permutexvar_epi32(sixteenths, roots), _mm512_slli_epi32(sixteenths, 19)));
  const __m512 slope = _mm512_fmadd_ps(part, _mm512_set1_ps(0.24023535f), _mm512_set1_ps(0.6931878f));
  const __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);  // NaN is not less
  return _mm512_maskz_fmadd_ps(high, _mm512_mul_ps(slope, part), power, power);
}

/// totals: [kHeads], to which terms are added.
template <bool kTerms, int kBits, int kHeads>
TIDAL_INLINE void score(const SketchLayout& layout, const std::byte* codes, const Prepared& of, float* scores,
                        std::ptrdiff_t stride, const std::byte* next, __m512* totals) {
  constexpr int kPlanes = 8 / kBits;
  // Few heads would leave the multiplier waiting for their own last sum.
  constexpr int kTogether = kHeads <= 2 ? 4 : kHeads <= 4 ? 2 : 1;
  const int vectors = layout.vectors(), stripe_bytes = vectors * SketchLayout::kVector;
  const auto ahead = static_cast<int>((layout.bytes() / (kStripes / kTogether) + 63) / 64 * 64);
  const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
  for (int s = 0; s < kStripes; s += kTogether, codes += kTogether * stripe_bytes, next += ahead) {
    for (int b = 0; b < ahead; b += 64) _mm_prefetch(reinterpret_cast<const char*>(next) + b, _MM_HINT_T0);
    __m512i sums[kHeads][kTogether];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kTogether; ++i) sums[h][i] = _mm512_setzero_si512();
    }
    const int32_t* weights = of.weights;
    for (int v = 0; v < vectors; ++v, weights += kPlanes) {
      __m512i planes[kTogether];
      for (int i = 0; i < kTogether; ++i) planes[i] = _mm512_loadu_si512(codes + i * stripe_bytes + v * 64);
      for (int p = 0; p < kPlanes; ++p) {
        __m512i code[kTogether];
        for (int i = 0; i < kTogether; ++i) {
          code[i] = _mm512_and_si512(p == 0 ? planes[i] : _mm512_srli_epi16(planes[i], p * kBits), mask);
        }
        for (int h = 0; h < kHeads; ++h) {
          const __m512i weight = _mm512_set1_epi32(weights[h * kMaxQuads + p]);
          for (int i = 0; i < kTogether; ++i) sums[h][i] = _mm512_dpbusd_epi32(sums[h][i], code[i], weight);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      const __m512 factor = _mm512_set1_ps(of.factor[slot(h)]), base = _mm512_set1_ps(of.base[slot(h)]);
      for (int i = 0; i < kTogether; ++i) {
        __m512 result = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(sums[h][i]), base);
        if constexpr (kTerms) {
          result = exp2_of(result);
          totals[h] = _mm512_add_ps(totals[h], result);
        }
        _mm512_storeu_ps(scores + h * stride + (s + i) * SketchLayout::kStripe, result);
      }
    }
  }
}

template <bool kTerms, int kBits, int kHeads>
TIDAL_TARGET void scan(const ScanArgs& a, const ScanTerms& terms) {
  alignas(64) float sorted[kHeads * kMaxDim];
  alignas(64) float references[16] = {};
  __m512 totals[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    totals[h] = _mm512_setzero_ps();
    if (kTerms) references[slot(h)] = terms.reference[h];
  }
  const __m512 reference = _mm512_load_ps(references), scale = _mm512_set1_ps(terms.scale);
  Prepared prepared;
  const int dim = a.layout.head_dim;
  sort_query<kHeads>(a.q, dim, sorted);
  const int last = a.blocks + a.blocks_after - 1;
  for (int b = 0; b < a.blocks; ++b) {
    prepare<kTerms, kHeads>(a.q, sorted, dim, a.sketches[b], scale, reference, prepared);
    score<kTerms, kBits, kHeads>(a.layout, a.sketches[b] + a.layout.codes_offset(), prepared,
                                 a.scores + kBlockTokens * b, a.stride, a.sketches[std::min(b + kAhead, last)], totals);
  }
  if (kTerms) {
    for (int h = 0; h < kHeads; ++h) terms.sum[h] = _mm512_reduce_add_ps(totals[h]);
  }
}

using Scan = void (*)(const ScanArgs&, const ScanTerms&);
template <bool kTerms, int kBits>
constexpr Scan kScan[kMaxHeads] = {scan<kTerms, kBits, 1>, scan<kTerms, kBits, 2>, scan<kTerms, kBits, 3>,
                                   scan<kTerms, kBits, 4>, scan<kTerms, kBits, 5>, scan<kTerms, kBits, 6>,
                                   scan<kTerms, kBits, 7>, scan<kTerms, kBits, 8>};
template <bool kTerms>
const Scan* scans(int bits) {
  return bits == 1 ? kScan<kTerms, 1> : bits == 2 ? kScan<kTerms, 2> : kScan<kTerms, 4>;
}

}  // namespace

bool scan_blocks_vnni(const ScanArgs& args, const ScanTerms* terms) {
  static const bool have = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!have) return false;
  const Scan* const all = terms ? scans<true>(args.layout.bits) : scans<false>(args.layout.bits);
  for_each_part(args, kMaxHeads, [&](const ScanArgs& part, int first) {
    all[part.heads - 1](part,
                        terms ? ScanTerms{terms->scale, terms->reference + first, terms->sum + first} : ScanTerms{});
  });
  return true;
}

}  // namespace tidal

#else

namespace tidal {
bool scan_blocks_vnni(const ScanArgs&, const ScanTerms*) { return false; }
}  // namespace tidal

#endif
