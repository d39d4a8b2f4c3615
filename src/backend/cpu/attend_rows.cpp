#include "backend/cpu/attend_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/cpu/kv_rows.h"
#include "backend/cpu/vector_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attend_rows.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// A bf16 row is loaded as 32-bit pairs: the low halves shifted up are the even elements, the high halves the odd ones.
// No element crosses a lane, so the kernel's order is, per 2N elements: N evens, then N odds.
using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using Vec = hn::Vec<F32>;

constexpr int kRound = 64;   // rows per softmax round
constexpr int kStripe = 16;  // rows converted to float32 at a time; the scratch stays in L1
constexpr int kMaxPadded = kMostHeadDim + 2 * static_cast<int>(hn::MaxLanes(F32()));

int PaddedDim(int head_dim) {
  const int unit = 2 * static_cast<int>(hn::Lanes(F32()));
  return (head_dim + unit - 1) / unit * unit;
}

// Heads [head_dim] in natural order to the kernel's, each padded with zeros, and back.
void Sort(const float* natural, int heads, int head_dim, float* sorted) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int padded = PaddedDim(head_dim);
  HWY_ALIGN float last[2 * hn::MaxLanes(d)];
  for (int h = 0; h < heads; ++h, natural += head_dim) {
    for (int i = 0; i < padded; i += 2 * lanes, sorted += 2 * lanes) {
      const float* from = natural + i;
      if (i + 2 * lanes > head_dim) {
        std::fill(std::copy(from, natural + head_dim, last), last + 2 * lanes, 0.0f);
        from = last;
      }
      Vec even, odd;
      hn::LoadInterleaved2(d, from, even, odd);
      hn::Store(even, d, sorted);
      hn::Store(odd, d, sorted + lanes);
    }
  }
}

void Unsort(const float* sorted, int heads, int head_dim, float* natural) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int padded = PaddedDim(head_dim);
  HWY_ALIGN float last[2 * hn::MaxLanes(d)];
  for (int h = 0; h < heads; ++h, natural += head_dim) {
    for (int i = 0; i < padded; i += 2 * lanes, sorted += 2 * lanes) {
      const bool whole = i + 2 * lanes <= head_dim;
      hn::StoreInterleaved2(hn::Load(d, sorted), hn::Load(d, sorted + lanes), d, whole ? natural + i : last);
      if (!whole) std::copy(last, last + head_dim - i, natural + i);
    }
  }
}

HWY_INLINE void Convert(const Bf16* row, int head_dim, float* to) {
  const F32 d;
  const U32 du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto* pairs = reinterpret_cast<const uint32_t*>(row);
  const auto high = hn::Set(du, 0xffff0000u);
  const int count = head_dim / 2;
  int i = 0;
  for (; i + lanes <= count; i += lanes, to += 2 * lanes) {
    const auto v = hn::LoadU(du, pairs + i);
    hn::Store(hn::BitCast(d, hn::ShiftLeft<16>(v)), d, to);
    hn::Store(hn::BitCast(d, hn::And(v, high)), d, to + lanes);
  }
  if (i < count) {
    const auto v = hn::MaskedLoad(hn::FirstN(du, static_cast<size_t>(count - i)), du, pairs + i);
    hn::Store(hn::BitCast(d, hn::ShiftLeft<16>(v)), d, to);
    hn::Store(hn::BitCast(d, hn::And(v, high)), d, to + lanes);
  }
}

// The key of a row of the cache, or its value.
HWY_INLINE void ConvertPart(const AttendRowsArgs& a, const std::byte* row, bool value, float* to) {
  if (a.type == KvType::Bf16)
    return Convert(reinterpret_cast<const Bf16*>(row) + (value ? a.head_dim : 0), a.head_dim, to);
  if (a.type == KvType::F32)
    return Sort(reinterpret_cast<const float*>(row) + (value ? a.head_dim : 0), 1, a.head_dim, to);
  float natural[kMostHeadDim];
  read_q8({a.type, a.head_dim}, row, value, natural);
  Sort(natural, 1, a.head_dim, to);
}

// to[0..4) = the sums of each vector's lanes.
HWY_INLINE void StoreLaneSums(Vec a, Vec b, Vec c, Vec e, float* to) {
#if HWY_TARGET == HWY_SCALAR
  const Vec all[4] = {a, b, c, e};
  for (int i = 0; i < 4; ++i) to[i] = hn::GetLane(all[i]);
#else
  const F32 d;
  const hn::Repartition<double, F32> d64;
  const hn::FixedTag<float, 4> d4;
  const Vec ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const Vec ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab64 = hn::BitCast(d64, ab);
  const auto ce64 = hn::BitCast(d64, ce);
  const Vec sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)),
                           hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(sums, d, lanes);
  auto total = hn::Load(d4, lanes);
  for (size_t i = 4; i < hn::Lanes(d); i += 4) total = hn::Add(total, hn::Load(d4, lanes + i));
  hn::StoreU(total, d4, to);
#endif
}

// kVec: vectors per head, 0 when only known at run time. scores[r] = q.k of the stripe's rows, for one head.
template <int kVec>
HWY_INLINE void ScoreStripe(const float* q, const float* keys, int vectors, float* scores) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int n = kVec ? kVec : vectors;
  const int padded = n * lanes;
  for (int r = 0; r < kStripe; r += 8) {
    const float* k = keys + r * padded;
    Vec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    for (int v = 0; v < n; ++v) {
      const Vec qv = hn::Load(d, q + v * lanes);
      const float* kv = k + v * lanes;
      s0 = hn::MulAdd(qv, hn::Load(d, kv), s0);
      s1 = hn::MulAdd(qv, hn::Load(d, kv + padded), s1);
      s2 = hn::MulAdd(qv, hn::Load(d, kv + 2 * padded), s2);
      s3 = hn::MulAdd(qv, hn::Load(d, kv + 3 * padded), s3);
      s4 = hn::MulAdd(qv, hn::Load(d, kv + 4 * padded), s4);
      s5 = hn::MulAdd(qv, hn::Load(d, kv + 5 * padded), s5);
      s6 = hn::MulAdd(qv, hn::Load(d, kv + 6 * padded), s6);
      s7 = hn::MulAdd(qv, hn::Load(d, kv + 7 * padded), s7);
    }
    StoreLaneSums(s0, s1, s2, s3, scores + r);
    StoreLaneSums(s4, s5, s6, s7, scores + r + 4);
  }
}

// output[0 .. kVec) += weights . values, for kHeads heads whose outputs are `padded` and weights `kRound` apart.
template <int kVec, int kHeads>
HWY_INLINE void ValueStripe(const float* weights, const float* values, float* output) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int padded = kVec * lanes;
  Vec sums[kHeads][kVec];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVec; ++v) sums[h][v] = hn::Load(d, output + h * padded + v * lanes);
  }
  for (int r = 0; r < kStripe; ++r) {
    Vec w[kHeads];
    for (int h = 0; h < kHeads; ++h) w[h] = hn::Set(d, weights[h * kRound + r]);
    for (int v = 0; v < kVec; ++v) {
      const Vec value = hn::Load(d, values + r * padded + v * lanes);
      for (int h = 0; h < kHeads; ++h) sums[h][v] = hn::MulAdd(w[h], value, sums[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVec; ++v) hn::Store(sums[h][v], d, output + h * padded + v * lanes);
  }
}

HWY_INLINE void ValueStripeAny(const float* weights, const float* values, int vectors, float* output) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int padded = vectors * lanes;
  for (int v = 0; v < vectors; ++v) {
    Vec sum = hn::Load(d, output + v * lanes);
    for (int r = 0; r < kStripe; ++r) {
      sum = hn::MulAdd(hn::Set(d, weights[r]), hn::Load(d, values + r * padded + v * lanes), sum);
    }
    hn::Store(sum, d, output + v * lanes);
  }
}

// Raw scores [kRound] of one head to softmax weights; unused entries become weight 0. Returns the factor by which what
// was summed before must shrink.
HWY_INLINE float SoftmaxRound(float* scores, int count, float scale, float& maximum, float& sum) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int i = count; i < kRound; ++i) scores[i] = lowest;
  Vec top = hn::Set(d, lowest);
  for (int i = 0; i < kRound; i += lanes) top = hn::Max(top, hn::Mul(hn::Load(d, scores + i), hn::Set(d, scale)));
  const float before = maximum;
  maximum = std::max(before, hn::GetLane(hn::MaxOfLanes(d, top)));
  // With nothing finite so far every weight is exp(-inf) = 0; subtracting -inf would make it NaN.
  const float base = maximum == lowest ? 0.0f : maximum;
  Vec total = hn::Zero(d);
  for (int i = 0; i < kRound; i += lanes) {
    const Vec x = hn::MulSub(hn::Load(d, scores + i), hn::Set(d, scale), hn::Set(d, base));
    // hn::Exp maps NaN to 0, which would hide a broken score.
    const Vec w = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
    total = hn::Add(total, w);
    hn::Store(w, d, scores + i);
  }
  const float shrink = before == lowest ? 0.0f : std::exp(before - base);
  sum = sum * shrink + hn::GetLane(hn::SumOfLanes(d, total));
  return shrink;
}

HWY_INLINE void ScaleOutput(float* output, int padded, float factor) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < padded; i += lanes)
    hn::Store(hn::Mul(hn::Load(d, output + i), hn::Set(d, factor)), d, output + i);
}

// Asks for one row, into the second-level cache: two rounds would not fit in the first.
HWY_INLINE void PrefetchRow(const std::byte* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
}

template <int kVec>
void AttendRowsVec(const AttendRowsArgs& a, int vectors) {
  const int padded = vectors * static_cast<int>(hn::Lanes(F32()));
  HWY_ALIGN float scratch[kStripe * kMaxPadded];
  HWY_ALIGN float weights[kMaxAttendHeads * kRound];
  HWY_ALIGN float q[kMaxAttendHeads * kMaxPadded];
  HWY_ALIGN float output[kMaxAttendHeads * kMaxPadded];
  Sort(a.q, a.heads, a.head_dim, q);
  std::fill(output, output + a.heads * padded, 0.0f);
  std::fill(a.part.maximum, a.part.maximum + a.heads, -std::numeric_limits<float>::infinity());
  std::fill(a.part.sum, a.part.sum + a.heads, 0.0f);

  const int64_t row_bytes = KvRowLayout{a.type, a.head_dim}.bytes();
  for (int r = 0; r < std::min(kRound, a.count); ++r) PrefetchRow(a.rows[r], row_bytes);
  for (int first = 0; first < a.count; first += kRound) {
    const int count = std::min(kRound, a.count - first);
    const std::byte* const* rows = a.rows + first;
    const int ahead = a.count - first - kRound;  // rows of later rounds
    for (int s = 0; s < count; s += kStripe) {
      const int stripe = std::min(kStripe, count - s);
      for (int r = 0; r < stripe; ++r) {
        // Every row is asked for a round before its turn: memory takes longer than a stripe.
        if (s + r < ahead) PrefetchRow(rows[s + r + kRound], row_bytes);
        ConvertPart(a, rows[s + r], false, scratch + r * padded);
      }
      for (int h = 0; h < a.heads; ++h) {
        ScoreStripe<kVec>(q + h * padded, scratch, vectors, weights + h * kRound + s);
      }
    }
    for (int h = 0; h < a.heads; ++h) {
      float* scores = weights + h * kRound;
      cap_scores(a, h, first, count, scores);
      const float shrink = SoftmaxRound(scores, count, a.scale, a.part.maximum[h], a.part.sum[h]);
      if (shrink != 1.0f) ScaleOutput(output + h * padded, padded, shrink);
    }
    for (int s = 0; s < count; s += kStripe) {
      const int stripe = std::min(kStripe, count - s);
      for (int r = 0; r < stripe; ++r) ConvertPart(a, rows[s + r], true, scratch + r * padded);
      // Rows beyond the end have weight 0, but their stale scratch may hold NaN.
      if (stripe < kStripe) std::fill(scratch + stripe * padded, scratch + kStripe * padded, 0.0f);
      int h = 0;
      if constexpr (kVec > 0 && kVec <= 4) {
        for (; h + 2 <= a.heads; h += 2) {
          ValueStripe<kVec, 2>(weights + h * kRound + s, scratch, output + h * padded);
        }
      }
      for (; h < a.heads; ++h) {
        if constexpr (kVec > 0) {
          ValueStripe<kVec, 1>(weights + h * kRound + s, scratch, output + h * padded);
        } else {
          ValueStripeAny(weights + h * kRound + s, scratch, vectors, output + h * padded);
        }
      }
    }
  }
  Unsort(output, a.heads, a.head_dim, a.part.output);
}

void AttendRows(const AttendRowsArgs& a) {
  const int vectors = PaddedDim(a.head_dim) / static_cast<int>(hn::Lanes(F32()));
  switch (vectors) {
    case 4: return AttendRowsVec<4>(a, vectors);
    case 6: return AttendRowsVec<6>(a, vectors);
    case 8: return AttendRowsVec<8>(a, vectors);
    default: return AttendRowsVec<0>(a, vectors);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {

HWY_EXPORT(AttendRows);

void cap_scores(const AttendRowsArgs& args, int head, int first, int count, float* scores) {
  float* const ranked = args.scores ? args.scores + head * args.scores_stride + first : nullptr;
  if (ranked && !args.capped_scores) std::copy_n(scores, count, ranked);
  if (args.cap > 0) cap_by(args.cap, count, scores);
  if (ranked && args.capped_scores) std::copy_n(scores, count, ranked);
}

void attend_rows_f32(const AttendRowsArgs& args) { HWY_DYNAMIC_DISPATCH(AttendRows)(args); }

void attend_rows(const AttendRowsArgs& args) {
  if (!attend_rows_bf16(args) && !attend_rows_q8(args)) attend_rows_f32(args);
}

void merge_parts(const AttentionPart& first, std::ptrdiff_t stride, int count, int heads, int head_dim,
                 const float* sink_logits, float* out, float* maximum, float* sum) {
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int h = 0; h < heads; ++h, out += head_dim) {
    float top = lowest;
    for (int p = 0; p < count; ++p) top = std::max(top, first.maximum[h + p * stride]);
    float total = 0;
    std::fill(out, out + head_dim, 0.0f);
    for (int p = 0; p < count; ++p) {
      const float own = first.maximum[h + p * stride];
      const float factor = own == lowest ? 0.0f : std::exp(own - top);
      total += first.sum[h + p * stride] * factor;
      const float* part = first.output + h * head_dim + p * stride;
      for (int i = 0; i < head_dim; ++i) out[i] += part[i] * factor;
    }
    const float all = sink_logits ? total + std::exp(sink_logits[h] - top) : total;
    for (int i = 0; i < head_dim; ++i) out[i] /= all;
    if (maximum) maximum[h] = top;
    if (sum) sum[h] = total;
  }
}

}  // namespace tidal
#endif  // HWY_ONCE
