#include "backend/cpu/attend_rows.h"

#if defined(__x86_64__)

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/vector_ops.h"

#define TIDAL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#include "backend/cpu/attend_rows_avx512.h"

namespace tidal {
namespace {

// Integer products, with sums in int32 that are exact, a block of 32 dims at a time, since that has its own scale.
//   Scores: 16 keys are transposed, so that a vector holds the same 4 dims of 16 keys; its even and its odd bytes,
//   widened, times two dims each of q in 16 bits (vpdpwssd). Output: 4 rows are interleaved, so that a vector holds 16
//   dims of 4 rows; times the rows' weights (vpdpbusd), which are 16 bits, so two of its bytes. A value's scale goes
//   into its weight.
constexpr int kDims = 64;  // of one vector
constexpr int kMaxBlocks = kMaxDim / kKvScaleBlock;
constexpr int kGroups = kRound / 4;  // of rows that are interleaved
constexpr float kLowest = -std::numeric_limits<float>::infinity();

bool have_vnni() {
  static const bool have = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return have;
}

TIDAL_INLINE __m512i load_codes(const std::byte* from, int dims) {
  if (dims >= kDims) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi8((uint64_t{1} << dims) - 1, from);
}

/// A query: pairs of its codes, 16 bits each, for every 4 dims: 0 and 2, then 1 and 3. Zeros behind head_dim.
struct alignas(64) Query {
  uint32_t pairs[kMaxDim / 4][2];
  float scale;
};

void round_query(const float* q, int head_dim, Query& query) {
  float top = 0;
  for (int d = 0; d < head_dim; ++d) top = std::max(top, std::abs(q[d]));
  bool finite = std::isfinite(top);
  for (int d = 0; d < head_dim; ++d) finite = finite && !std::isnan(q[d]);
  query.scale = finite ? top / 32767.0f : std::numeric_limits<float>::quiet_NaN();
  const float inverse = finite && query.scale >= std::numeric_limits<float>::min() ? 1.0f / query.scale : 0.0f;
  const auto code = [&](int d) {
    if (d >= head_dim || inverse == 0) return uint32_t{0};
    const float rounded = std::min(std::max(std::nearbyint(q[d] * inverse), -32767.0f), 32767.0f);
    return static_cast<uint32_t>(static_cast<uint16_t>(static_cast<int16_t>(rounded)));
  };
  for (int d = 0; d < (head_dim + kDims - 1) / kDims * kDims; d += 4) {
    query.pairs[d / 4][0] = code(d) | code(d + 2) << 16;
    query.pairs[d / 4][1] = code(d + 1) | code(d + 3) << 16;
  }
}

/// scales [2 * blocks][kRound], those of the rows from `first` on: of K, then of V; 0 behind the last row.
TIDAL_INLINE void read_scales(const KvRowLayout& layout, const std::byte* const* rows, int first, int count,
                              float* scales) {
  constexpr int kHalves = 4;  // of 8 bytes
  const int own = 2 * layout.scales();
  alignas(64) uint64_t words[kStripe];
  for (int s = 0; s < own; s += kHalves) {
    for (int r = 0; r < kStripe; ++r) {
      words[r] = 0;
      if (r < count) std::memcpy(words + r, rows[r] + layout.scales_offset() + 2 * s, sizeof *words);
    }
    const __m512i low = _mm512_load_si512(words), high = _mm512_load_si512(words + 8);
    __m512i index = _mm512_setr_epi32(0x00040000, 0x000c0008, 0x00140010, 0x001c0018, 0x00240020, 0x002c0028,
                                      0x00340030, 0x003c0038, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int i = 0; i < kHalves && s + i < own; ++i) {
      const __m512i halves = _mm512_permutex2var_epi16(low, index, high);
      _mm512_storeu_ps(scales + (s + i) * kRound + first, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
      index = _mm512_add_epi16(index, _mm512_set1_epi16(1));
    }
  }
}

/// scores[h * kRound + r] = q[h] . keys[r] of up to 16 rows. scales: [blocks][kRound].
template <int kHeads>
TIDAL_INLINE void score_stripe(const Query* q, const std::byte* const* rows, int count, int head_dim,
                               const float* scales, Prefetcher& next, float* scores) {
  __m512 sums[kHeads];
  for (int h = 0; h < kHeads; ++h) sums[h] = _mm512_setzero_ps();
  for (int d = 0; d < head_dim; d += kDims) {
    __m512i keys[kStripe];
    for (int r = 0; r < kStripe; ++r) keys[r] = load_codes(rows[std::min(r, count - 1)] + d, head_dim - d);
    transpose(keys);
    for (int half = 0; half < 2 && d + half * kKvScaleBlock < head_dim; ++half) {
      __m512i products[kHeads][2];
      for (int h = 0; h < kHeads; ++h) products[h][0] = products[h][1] = _mm512_setzero_si512();
      for (int p = 0; p < 8; ++p) {
        const __m512i four = keys[half * 8 + p];
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), odd = _mm512_srai_epi16(four, 8);
        next.step(1);
        for (int h = 0; h < kHeads; ++h) {
          const uint32_t* const pair = q[h].pairs[d / 4 + half * 8 + p];
          products[h][0] = _mm512_dpwssd_epi32(products[h][0], even, _mm512_set1_epi32(static_cast<int>(pair[0])));
          products[h][1] = _mm512_dpwssd_epi32(products[h][1], odd, _mm512_set1_epi32(static_cast<int>(pair[1])));
        }
      }
      const __m512 scale = _mm512_loadu_ps(scales + (d / kKvScaleBlock + half) * kRound);
      for (int h = 0; h < kHeads; ++h) {
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(products[h][0], products[h][1]));
        sums[h] = _mm512_fmadd_ps(whole, scale, sums[h]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    _mm512_store_ps(scores + h * kRound, _mm512_mul_ps(sums[h], _mm512_set1_ps(q[h].scale)));
  }
}

/// What a round does to a head's softmax.
struct Step {
  float shrink;  ///< factor on what was summed before
  float factor;  ///< on the round's weights
};

/// Raw scores [kRound] of one head become softmax weights in terms of the round's highest, so that this has weight 1
/// however low it is.
TIDAL_INLINE Step softmax_round(float* scores, float scale, float& maximum, float& sum) {
  constexpr int kVectors = kRound / 16;
  constexpr float kLog2e = 1.44269504f;
  __m512 x[kVectors];
  __m512 tops = _mm512_set1_ps(kLowest);
  for (int i = 0; i < kVectors; ++i) {
    x[i] = _mm512_mul_ps(_mm512_load_ps(scores + 16 * i), _mm512_set1_ps(scale));
    tops = _mm512_max_ps(x[i], tops);  // keeps tops where x is NaN
  }
  const float own = _mm512_reduce_max_ps(tops), before = maximum;
  maximum = std::max(before, own);
  // With nothing finite every weight is exp(-inf) = 0; subtracting -inf would make it NaN.
  const __m512 base = _mm512_set1_ps(own == kLowest ? 0.0f : own);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < kVectors; ++i) {
    x[i] = exp2_of(_mm512_mul_ps(_mm512_sub_ps(x[i], base), _mm512_set1_ps(kLog2e)));
    total = _mm512_add_ps(total, x[i]);
    _mm512_store_ps(scores + 16 * i, x[i]);
  }
  const Step step{before == kLowest   ? 0.0f
                  : before == maximum ? 1.0f
                                      : std::exp(before - maximum),
                  own == maximum   ? 1.0f
                  : own == kLowest ? 0.0f
                                   : std::exp(own - maximum)};
  sum = std::fma(step.factor, _mm512_reduce_add_ps(total), sum * step.shrink);
  return step;
}

/// The values of a round, [2 * blocks][kGroups] vectors of 16 dims of 4 rows each: of 32 dims of a block first 0-3,
/// 16-19, 4-7, 20-23, then 8-11, 24-27, 12-15, 28-31.
TIDAL_INLINE void interleave(const std::byte* const* rows, int count, int head_dim, Prefetcher& next, __m512i* values) {
  for (int r = 0; r < count; r += 4) {
    for (int d = 0; d < head_dim; d += kDims) {
      __m512i row[4];
      for (int i = 0; i < 4; ++i) {
        row[i] = load_codes(rows[std::min(r + i, count - 1)] + head_dim + d, head_dim - d);
      }
      next.step(2);
      const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
      const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
      // Within 128 bits: dims 0-3, 4-7, 8-11, 12-15.
      const __m512i part[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                               _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
      __m512i* const to = values + d / 16 * kGroups + r / 4;
      to[0] = _mm512_shuffle_i32x4(part[0], part[1], 0x44);
      to[kGroups] = _mm512_shuffle_i32x4(part[2], part[3], 0x44);
      if (d + kKvScaleBlock >= head_dim) continue;
      to[2 * kGroups] = _mm512_shuffle_i32x4(part[0], part[1], 0xee);
      to[3 * kGroups] = _mm512_shuffle_i32x4(part[2], part[3], 0xee);
    }
  }
}

/// A head's weights for one block of dims: of each row's, 16 bits, the lower and the upper byte.
struct alignas(64) Weights {
  uint8_t low[kRound], high[kRound];
  float unit;  ///< what products with these are to be multiplied by
};

/// Whether one of a round's scales [kRound] is no number.
TIDAL_INLINE bool any_nan(const float* scales) {
  __mmask16 nan = 0;
  for (int i = 0; i < kRound; i += 16) {
    const __m512 own = _mm512_load_ps(scales + i);
    nan |= _mm512_cmp_ps_mask(own, own, _CMP_UNORD_Q);
  }
  return nan != 0;
}

/// weights = softmax weights [kRound] times the rows' scales, in 65535ths of the highest of these: a position of large
/// weight may have a small value, and one of small weight is then most of the output.
TIDAL_INLINE void make_weights(const float* softmax, const float* scales, bool nan, Weights& weights) {
  constexpr int kVectors = kRound / 16;
  constexpr float kMost = 65535.0f, kLeast = 0x1p-100f;  // below that the inverse is no number, and the output 0
  __m512 shares[kVectors];
  __m512 tops = _mm512_setzero_ps();
  for (int i = 0; i < kVectors; ++i) {
    shares[i] = _mm512_mul_ps(_mm512_load_ps(softmax + 16 * i), _mm512_load_ps(scales + 16 * i));
    tops = _mm512_max_ps(shares[i], tops);  // keeps tops where a share is NaN
  }
  const float top = _mm512_reduce_max_ps(tops);
  const __m512 inverse = _mm512_set1_ps(top > kLeast ? kMost / top : 0.0f);
  for (int i = 0; i < kVectors; ++i) {
    const __m512i whole = _mm512_cvtps_epu32(_mm512_mul_ps(shares[i], inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(weights.low + 16 * i), _mm512_cvtepi32_epi8(whole));
    _mm_store_si128(reinterpret_cast<__m128i*>(weights.high + 16 * i),
                    _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
  }
  weights.unit = nan ? std::numeric_limits<float>::quiet_NaN() : top / kMost;
}

TIDAL_INLINE __m512i four_weights(const uint8_t* from, int group) {
  int word;
  std::memcpy(&word, from + 4 * group, sizeof word);
  return _mm512_set1_epi32(word);
}

/// output[h] = output[h] * shrink + the round's weights . values, of 16 dims. weights: [kHeads] of the block.
template <int kHeads>
TIDAL_INLINE void add_values(const Weights* weights, const __m512i* values, int groups, const Step* steps,
                             float* output) {
  __m512i low[kHeads], high[kHeads];
  for (int h = 0; h < kHeads; ++h) low[h] = high[h] = _mm512_setzero_si512();
  for (int g = 0; g < groups; ++g) {
    for (int h = 0; h < kHeads; ++h) {
      low[h] = _mm512_dpbusd_epi32(low[h], four_weights(weights[h].low, g), values[g]);
      high[h] = _mm512_dpbusd_epi32(high[h], four_weights(weights[h].high, g), values[g]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    const __m512 whole =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[h]), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(low[h]));
    const __m512 before = _mm512_mul_ps(_mm512_load_ps(output + h * kMaxDim), _mm512_set1_ps(steps[h].shrink));
    _mm512_store_ps(output + h * kMaxDim,
                    _mm512_fmadd_ps(whole, _mm512_set1_ps(weights[h].unit * steps[h].factor), before));
  }
}

/// One head from the order of interleave().
TIDAL_TARGET void sort_output(const float* interleaved, int head_dim, float* to) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  const __m512i second = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  for (int d = 0; d < head_dim; d += kKvScaleBlock) {
    const __m512 low = _mm512_load_ps(interleaved + d), high = _mm512_load_ps(interleaved + d + 16);
    _mm512_storeu_ps(to + d, _mm512_permutex2var_ps(low, first, high));
    if (d + 16 < head_dim) _mm512_storeu_ps(to + d + 16, _mm512_permutex2var_ps(low, second, high));
  }
}

template <int kHeads>
TIDAL_TARGET void attend(const AttendRowsArgs& a) {
  alignas(64) Query q[kHeads];
  alignas(64) float scales[2 * kMaxBlocks * kRound];
  alignas(64) float scores[kHeads * kRound];
  alignas(64) Weights weights[kHeads];
  alignas(64) float output[kHeads * kMaxDim];
  __m512i values[kMaxDim / 16 * kGroups];
  Step steps[kHeads];
  const KvRowLayout layout{a.type, a.head_dim};
  for (int h = 0; h < kHeads; ++h) round_query(a.q + static_cast<ptrdiff_t>(h) * a.head_dim, a.head_dim, q[h]);
  std::memset(output, 0, sizeof output);
  std::fill_n(a.part.maximum, kHeads, kLowest);
  std::fill_n(a.part.sum, kHeads, 0.0f);

  Prefetcher(a.rows, std::min(kRound, a.count), layout.bytes()).all();
  for (int first = 0; first < a.count; first += kRound) {
    const int count = std::min(kRound, a.count - first), groups = (count + 3) / 4;
    const std::byte* const* rows = a.rows + first;
    Prefetcher next(rows + kRound, std::min(kRound, a.count - first - kRound), layout.bytes());
    for (int s = 0; s < kRound; s += kStripe) {
      const int own = std::clamp(count - s, 0, kStripe);
      read_scales(layout, rows + s, s, own, scales);
      if (own > 0) score_stripe<kHeads>(q, rows + s, own, a.head_dim, scales + s, next, scores + s);
    }
    for (int h = 0; h < kHeads; ++h) {
      float* own = scores + h * kRound;
      cap_scores(a, h, first, count, own);
      std::fill(own + count, own + kRound, kLowest);
      steps[h] = softmax_round(own, a.scale, a.part.maximum[h], a.part.sum[h]);
    }
    interleave(rows, count, a.head_dim, next, values);
    for (int block = 0; block < layout.scales(); ++block) {
      const float* const own = scales + (layout.scales() + block) * kRound;
      const bool nan = any_nan(own);
      for (int h = 0; h < kHeads; ++h) make_weights(scores + h * kRound, own, nan, weights[h]);
      for (int half = 0; half < 2; ++half) {
        const int part = 2 * block + half;
        add_values<kHeads>(weights, values + part * kGroups, groups, steps, output + part * 16);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    sort_output(output + h * kMaxDim, a.head_dim, a.part.output + static_cast<ptrdiff_t>(h) * a.head_dim);
  }
}

}  // namespace

bool attend_rows_q8(const AttendRowsArgs& args) {
  if (args.type != KvType::Q8 || !have_vnni()) return false;
  static constexpr AttendKernel kAttend[kMaxHeads] = {attend<1>, attend<2>, attend<3>, attend<4>,
                                                      attend<5>, attend<6>, attend<7>, attend<8>};
  attend_in_parts(args, kAttend);
  return true;
}

}  // namespace tidal

#else

namespace tidal {
bool attend_rows_q8(const AttendRowsArgs&) { return false; }
}  // namespace tidal

#endif
