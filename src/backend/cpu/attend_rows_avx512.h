// What the AVX512 kernels of decode attention share. Included by sources for x86-64 alone.
#pragma once

// GCC's own header starts intrinsics from a variable that it leaves uninitialised on purpose, and warns of it here.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cpu/attend_rows.h"

#define TIDAL_INLINE TIDAL_TARGET __attribute__((always_inline)) inline

namespace tidal {
namespace {

constexpr int kRound = 64;   // rows per softmax round
constexpr int kStripe = 16;  // keys transposed together
constexpr int kMaxDim = kMostHeadDim;
constexpr int kMaxHeads = 8;  // whose sums fit in registers together

/// Asks for the rows of the next round line by line, a little with every step of this one: a burst would only wait for
/// the few lines that may be on their way at once, and leave memory idle while the products run. Into the second-level
/// cache, since two rounds would not fit in the first.
class Prefetcher {
 public:
  Prefetcher(const std::byte* const* rows, int count, int64_t row_bytes)
      : rows_(rows), end_(rows + std::max(count, 0)), row_bytes_(row_bytes) {}

  TIDAL_INLINE void step(int lines) {
    for (int i = 0; i < lines; ++i) {
      if (rows_ == end_) return;
      _mm_prefetch(reinterpret_cast<const char*>(*rows_) + offset_, _MM_HINT_T1);
      offset_ += 64;
      if (offset_ >= row_bytes_) {
        offset_ = 0;
        ++rows_;
      }
    }
  }
  TIDAL_TARGET void all() {
    while (rows_ != end_) step(64);
  }

 private:
  const std::byte* const* rows_;
  const std::byte* const* end_;
  int64_t row_bytes_;
  int64_t offset_ = 0;
};

/// 16 vectors of 16 words: vector k's word p becomes vector p's word k.
TIDAL_INLINE void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/// 2^x to 3e-7: a polynomial, fitted on [-0.5, 0.5], for the fraction, then the exponent. NaN stays NaN; below 2^-149
/// it is 0.
TIDAL_INLINE __m512 exp2_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // the second operand where one is NaN
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.32217e-3f);
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.67716e-3f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.550958e-2f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022135e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314674e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, whole);
}

/// Calls the kernel for so many heads, kAttend[heads - 1], for all heads of `args`.
using AttendKernel = void (*)(const AttendRowsArgs&);
inline void attend_in_parts(const AttendRowsArgs& args, const AttendKernel (&kernels)[kMaxHeads]) {
  AttendRowsArgs part = args;
  for (int done = 0; done < args.heads; done += part.heads) {
    part.heads = std::min(kMaxHeads, args.heads - done);
    part.q = args.q + static_cast<ptrdiff_t>(done) * args.head_dim;
    if (args.scores) part.scores = args.scores + done * args.scores_stride;
    part.part = {args.part.output + static_cast<ptrdiff_t>(done) * args.head_dim, args.part.maximum + done,
                 args.part.sum + done};
    kernels[part.heads - 1](part);
  }
}

}  // namespace
}  // namespace tidal
