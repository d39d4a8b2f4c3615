#include "backend/cpu/rounded_rows.h"

#if defined(__x86_64__)

// GCC's own header starts intrinsics from a variable that it leaves uninitialised on purpose, and warns of it here.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/vector_ops.h"

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr float kLog2e = 1.44269504f;

/// 2^x with a relative error below 2.7e-6: a polynomial, fitted on [0, 1], for what is above floor(x), which scalef
/// takes for the exponent. NaN stays NaN; -infinity gives 0, infinity itself.
TIDAL_INLINE __m512 exp2_of(__m512 x) {
  const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 y = _mm512_set1_ps(0.013534137f);
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.05201149f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24144277f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69300383f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(y, x);
}

/// 1s for the elements [first, first + 16) that are below `count`.
TIDAL_INLINE __mmask16 mask_below(int count, int first) {
  const int left = std::clamp(count - first, 0, 16);
  return static_cast<__mmask16>((1u << left) - 1);
}

TIDAL_INLINE __m512 load_scores(const float* scores, int count, int first) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(kLowest), mask_below(count, first), scores + first);
}

TIDAL_TARGET float softmax_step(const float* scores, int count, int padded, float scale, float& maximum, float& sum,
                                Bf16* to) {
  const int whole = count / 32 * 32;
  // max_ps takes its second operand where one is NaN.
  __m512 tops = _mm512_set1_ps(kLowest), more = tops;
  for (int i = 0; i < whole; i += 32) {
    tops = _mm512_max_ps(_mm512_loadu_ps(scores + i), tops);
    more = _mm512_max_ps(_mm512_loadu_ps(scores + i + 16), more);
  }
  if (whole < count) {
    tops = _mm512_max_ps(load_scores(scores, count, whole), tops);
    more = _mm512_max_ps(load_scores(scores, count, whole + 16), more);
  }
  const float before = maximum;
  maximum = std::max(before, _mm512_reduce_max_ps(_mm512_max_ps(tops, more)) * scale);
  // With nothing above -infinity so far every weight is exp(-inf) = 0; subtracting -inf would make it NaN.
  const float base = maximum == kLowest ? 0.0f : maximum;
  const __m512 factor = _mm512_set1_ps(scale * kLog2e), top = _mm512_set1_ps(base * kLog2e);
  __m512 total = _mm512_setzero_ps(), rest = total;
  int i = 0;
  for (; i < whole; i += 32) {
    const __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i), factor, top));
    const __m512 b = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i + 16), factor, top));
    total = _mm512_add_ps(total, a);
    rest = _mm512_add_ps(rest, b);
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
  if (whole < count) {
    const __m512 a = exp2_of(_mm512_fmsub_ps(load_scores(scores, count, i), factor, top));
    const __m512 b = exp2_of(_mm512_fmsub_ps(load_scores(scores, count, i + 16), factor, top));
    total = _mm512_add_ps(total, a);
    rest = _mm512_add_ps(rest, b);
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
    i += 32;
  }
  for (; i < padded; i += 32) _mm512_storeu_si512(to + i, _mm512_setzero_si512());
  const float shrink = before == kLowest ? 0.0f : before == maximum ? 1.0f : std::exp(before - base);
  sum = sum * shrink + _mm512_reduce_add_ps(_mm512_add_ps(total, rest));
  return shrink;
}

template <Activation kActivation>
TIDAL_TARGET void activate_as(const float* gate, const float* up, int count, Bf16* to) {
  for (int i = 0; i < count; i += 16) {
    const __mmask16 mask = mask_below(count, i);
    __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 slope = _mm512_set1_ps(-kLog2e);
    if constexpr (kActivation == Activation::Gelu) {
      slope = _mm512_fmadd_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(-kLog2e * kGeluCubic),
                              _mm512_set1_ps(-kLog2e * kGeluLinear));
    }
    if constexpr (kActivation == Activation::ClampedSwiGlu) {
      // min_ps and max_ps take their second operand where one is NaN.
      const __m512 limit = _mm512_set1_ps(kClampedLimit);
      g = _mm512_min_ps(limit, g);
      u = _mm512_add_ps(_mm512_max_ps(_mm512_set1_ps(-kClampedLimit), _mm512_min_ps(limit, u)), one);
      slope = _mm512_set1_ps(-kLog2e * kClampedSlope);
    }
    const __m512 power = exp2_of(_mm512_mul_ps(g, slope));
    const __m512 product = _mm512_mul_ps(g, u);
    // 1 / x by approximation, within 2^-14.
    const __m512 result = _mm512_mul_ps(product, _mm512_rcp14_ps(_mm512_add_ps(one, power)));
    _mm256_mask_storeu_epi16(to + i, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(result)));
  }
}

}  // namespace

bool has_rounded_rows() {
  static const bool have = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return have;
}

float softmax_step_to_bf16(const float* scores, int count, int padded, float scale, float& maximum, float& sum,
                           Bf16* to) {
  return softmax_step(scores, count, padded, scale, maximum, sum, to);
}

void activate_to_bf16(Activation activation, const float* gate, const float* up, int count, Bf16* to) {
  switch (activation) {
    case Activation::Silu: return activate_as<Activation::Silu>(gate, up, count, to);
    case Activation::Gelu: return activate_as<Activation::Gelu>(gate, up, count, to);
    case Activation::ClampedSwiGlu: return activate_as<Activation::ClampedSwiGlu>(gate, up, count, to);
  }
}

}  // namespace tidal

#else

#include "core/error.h"

namespace tidal {

bool has_rounded_rows() { return false; }
float softmax_step_to_bf16(const float*, int, int, float, float&, float&, Bf16*) {
  fail("rounded rows: this processor has no AVX512-BF16, which softmax needs");
}
void activate_to_bf16(Activation, const float*, const float*, int, Bf16*) {
  fail("rounded rows: this processor has no AVX512-BF16, which activations need");
}

}  // namespace tidal

#endif
