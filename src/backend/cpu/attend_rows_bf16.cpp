#include "backend/cpu/attend_rows.h"

#if defined(__x86_64__)

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/vector_ops.h"

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#include "backend/cpu/attend_rows_avx512.h"

namespace tidal {
namespace {

// vdpbf16ps adds the products of two bf16 pairs to each of 16 float32 sums.
//   Scores: 16 keys are transposed once for all heads, so that a vector holds the same pair of dims of 16 keys; times
//   that pair of q, the 16 sums are 16 scores, and no sum ever crosses a vector.
//   Output: the values of two rows are interleaved; times the rows' pair of weights, the sums are 16 dims.
constexpr int kDims = 32;  // dims of one vector of bf16
constexpr int kMaxPairs = kMaxDim / 2;

bool have_bf16() {
  static const bool have = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return have;
}

/// Elements of a row from `first` on.
TIDAL_INLINE __m512i load_dims(const std::byte* row, int first, int dims) {
  const auto* from = reinterpret_cast<const Bf16*>(row) + first;
  if (dims >= kDims) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((1u << dims) - 1, from);
}

TIDAL_INLINE __m512 dot_pairs(__m512 sums, __m512i pairs, const uint32_t* pair) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(pairs),
                          reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(*pair))));
}

/// scores[h * kRound + r] = q[h] . keys[r] of up to 16 rows. q: pairs [heads][kMaxPairs].
template <int kHeads>
TIDAL_INLINE void score_stripe(const uint32_t* q, const std::byte* const* rows, int count, int head_dim,
                               Prefetcher& next, float* scores) {
  // Few heads would leave the multiplier waiting for their own last sum.
  constexpr int kSums = kHeads <= 2 ? 4 : kHeads <= 4 ? 2 : 1;
  __m512 sums[kHeads][kSums];
  for (int h = 0; h < kHeads; ++h) {
    for (int s = 0; s < kSums; ++s) sums[h][s] = _mm512_setzero_ps();
  }
  for (int d = 0; d < head_dim; d += kDims) {
    __m512i keys[kStripe];
    for (int r = 0; r < kStripe; ++r) keys[r] = load_dims(rows[std::min(r, count - 1)], d, head_dim - d);
    transpose(keys);
    const uint32_t* pairs = q + d / 2;
    for (int p = 0; p < kStripe; ++p) {
      next.step(1);
      for (int h = 0; h < kHeads; ++h) {
        sums[h][p % kSums] = dot_pairs(sums[h][p % kSums], keys[p], pairs + h * kMaxPairs + p);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int s = 1; s < kSums; ++s) sums[h][0] = _mm512_add_ps(sums[h][0], sums[h][s]);
    _mm512_store_ps(scores + h * kRound, sums[h][0]);
  }
}

/// Raw scores [kRound] of one head to bf16 pairs of softmax weights [kRound / 2]; -infinity becomes weight 0. Updates
/// maximum and sum; returns the factor by which what was summed before must shrink.
TIDAL_INLINE float softmax_round(const float* scores, float scale, float& maximum, float& sum, uint32_t* pairs) {
  constexpr int kVectors = kRound / 16;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  constexpr float kLog2e = 1.44269504f;
  __m512 x[kVectors];
  __m512 tops = _mm512_set1_ps(maximum);
  for (int i = 0; i < kVectors; ++i) {
    x[i] = _mm512_mul_ps(_mm512_load_ps(scores + 16 * i), _mm512_set1_ps(scale));
    tops = _mm512_max_ps(x[i], tops);  // keeps tops where x is NaN
  }
  const float before = maximum;
  maximum = _mm512_reduce_max_ps(tops);
  // With nothing finite so far every weight is exp(-inf) = 0; subtracting -inf would make it NaN.
  const float base = maximum == kLowest ? 0.0f : maximum;
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < kVectors; ++i) {
    x[i] = exp2_of(_mm512_mul_ps(_mm512_sub_ps(x[i], _mm512_set1_ps(base)), _mm512_set1_ps(kLog2e)));
    total = _mm512_add_ps(total, x[i]);
  }
  for (int i = 0; i < kVectors; i += 2) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(x[i + 1], x[i]);
    _mm512_store_si512(pairs + 8 * i, reinterpret_cast<__m512i>(rounded));
  }
  const float shrink = before == kLowest ? 0.0f : before == maximum ? 1.0f : std::exp(before - base);
  sum = sum * shrink + _mm512_reduce_add_ps(total);
  return shrink;
}

/// output[h] = output[h] * shrink[h] + weights[h] . values, for all rows of the round. weights: pairs [heads][kRound /
/// 2]. output: [heads][kMaxDim] in the order of the interleaved values.
template <int kHeads>
TIDAL_INLINE void add_values(const uint32_t* weights, const std::byte* const* rows, int count, int head_dim,
                             const float* shrink, Prefetcher& next, float* output) {
  for (int d = 0; d < head_dim; d += kDims) {
    __m512 sums[kHeads][2];
    for (int h = 0; h < kHeads; ++h) {
      const __m512 factor = _mm512_set1_ps(shrink[h]);
      sums[h][0] = _mm512_mul_ps(_mm512_load_ps(output + h * kMaxDim + d), factor);
      sums[h][1] = _mm512_mul_ps(_mm512_load_ps(output + h * kMaxDim + d + 16), factor);
    }
    for (int r = 0; r < count; r += 2) {
      const __m512i first = load_dims(rows[r], head_dim + d, head_dim - d);
      const __m512i second =
          r + 1 < count ? load_dims(rows[r + 1], head_dim + d, head_dim - d) : _mm512_setzero_si512();
      const __m512i low = _mm512_unpacklo_epi16(first, second);
      const __m512i high = _mm512_unpackhi_epi16(first, second);
      next.step(2);
      for (int h = 0; h < kHeads; ++h) {
        const uint32_t* pair = weights + h * (kRound / 2) + r / 2;
        sums[h][0] = dot_pairs(sums[h][0], low, pair);
        sums[h][1] = dot_pairs(sums[h][1], high, pair);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      _mm512_store_ps(output + h * kMaxDim + d, sums[h][0]);
      _mm512_store_ps(output + h * kMaxDim + d + 16, sums[h][1]);
    }
  }
}

/// One head from the interleaved order: within 32 dims {0-3, 8-11, 16-19, 24-27}, then {4-7, 12-15, 20-23, 28-31}.
TIDAL_TARGET void sort_output(const float* interleaved, int head_dim, float* to) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int d = 0; d < head_dim; d += kDims) {
    const __m512 low = _mm512_load_ps(interleaved + d), high = _mm512_load_ps(interleaved + d + 16);
    _mm512_storeu_ps(to + d, _mm512_permutex2var_ps(low, first, high));
    if (d + 16 < head_dim) _mm512_storeu_ps(to + d + 16, _mm512_permutex2var_ps(low, second, high));
  }
}

/// q as bf16 pairs [heads][kMaxPairs], zeros behind head_dim.
TIDAL_TARGET void round_query(const float* q, int heads, int head_dim, uint32_t* pairs) {
  std::memset(pairs, 0, sizeof(uint32_t) * heads * kMaxPairs);
  for (int h = 0; h < heads; ++h) {
    floats_to_bf16(q + h * head_dim, head_dim, reinterpret_cast<Bf16*>(pairs + h * kMaxPairs));
  }
}

template <int kHeads>
TIDAL_TARGET void attend(const AttendRowsArgs& a) {
  alignas(64) uint32_t q[kHeads * kMaxPairs];
  alignas(64) float scores[kHeads * kRound];
  alignas(64) uint32_t weights[kHeads * kRound / 2];
  alignas(64) float output[kHeads * kMaxDim];
  float shrink[kHeads];
  round_query(a.q, kHeads, a.head_dim, q);
  std::memset(output, 0, sizeof output);
  std::fill_n(a.part.maximum, kHeads, -std::numeric_limits<float>::infinity());
  std::fill_n(a.part.sum, kHeads, 0.0f);

  const int64_t row_bytes = KvRowLayout{a.type, a.head_dim}.bytes();
  Prefetcher(a.rows, std::min(kRound, a.count), row_bytes).all();
  for (int first = 0; first < a.count; first += kRound) {
    const int count = std::min(kRound, a.count - first);
    const std::byte* const* rows = a.rows + first;
    Prefetcher next(rows + kRound, std::min(kRound, a.count - first - kRound), row_bytes);
    for (int s = 0; s < count; s += kStripe) {
      score_stripe<kHeads>(q, rows + s, std::min(kStripe, count - s), a.head_dim, next, scores + s);
    }
    for (int h = 0; h < kHeads; ++h) {
      float* own = scores + h * kRound;
      cap_scores(a, h, first, count, own);
      std::fill(own + count, own + kRound, -std::numeric_limits<float>::infinity());
      shrink[h] = softmax_round(own, a.scale, a.part.maximum[h], a.part.sum[h], weights + h * (kRound / 2));
    }
    add_values<kHeads>(weights, rows, count, a.head_dim, shrink, next, output);
  }
  for (int h = 0; h < kHeads; ++h) sort_output(output + h * kMaxDim, a.head_dim, a.part.output + h * a.head_dim);
}

}  // namespace

bool attend_rows_bf16(const AttendRowsArgs& args) {
  if (args.type != KvType::Bf16 || !have_bf16()) return false;
  static constexpr AttendKernel kAttend[kMaxHeads] = {attend<1>, attend<2>, attend<3>, attend<4>,
                                                      attend<5>, attend<6>, attend<7>, attend<8>};
  attend_in_parts(args, kAttend);
  return true;
}

}  // namespace tidal

#else

namespace tidal {
bool attend_rows_bf16(const AttendRowsArgs&) { return false; }
}  // namespace tidal

#endif
