#include "backend/cpu/vector_ops.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "backend/cpu/kv_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/vector_ops.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;

// Calls body(offset, tag) over [0, count): whole vectors, then single elements.
template <typename Body>
HWY_INLINE void ForEach(int count, const Body& body) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int i = 0;
  for (; i + lanes <= count; i += lanes) body(i, d);
  for (; i < count; ++i) body(i, hn::CappedTag<float, 1>());
}

HWY_INLINE float SumOfSquares(const float* x, int count) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Vec squares = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vec v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

template <typename D, typename V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  // hn::Exp wraps around above 104; at 88 the sigmoid is as good as 0. It maps NaN to 0.
  const V sigmoid = hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)))));
  return hn::IfThenElse(hn::IsNaN(x), x, sigmoid);
}

void RmsNorm(const float* x, const float* weight, int count, float epsilon, float* out) {
  const float factor = 1.0f / std::sqrt(SumOfSquares(x, count) / static_cast<float>(count) + epsilon);
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(tag, x + at), hn::Set(tag, factor));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(tag, weight + at)), tag, out + at);
  });
}

void FloatsToBf16(const float* from, int count, Bf16* to) {
  const hn::ScalableTag<uint32_t> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto* bits = reinterpret_cast<const uint32_t*>(from);
  auto* half = reinterpret_cast<uint16_t*>(to);
  int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, bits + i);
    const auto odd = hn::And(hn::ShiftRight<16>(v), hn::Set(d, 1u));
    const auto sum = hn::Add(v, hn::Add(odd, hn::Set(d, 0x7fffu)));
    // The carry of a NaN's payload would run into the exponent and the sign.
    const auto nan = hn::Gt(hn::And(v, hn::Set(d, 0x7fffffffu)), hn::Set(d, 0x7f800000u));
    const auto rounded = hn::ShiftRight<16>(hn::IfThenElse(nan, hn::Or(v, hn::Set(d, 0x400000u)), sum));
    hn::StoreU(hn::TruncateTo(d16, rounded), d16, half + i);
  }
  for (; i < count; ++i) to[i] = to_bf16(from[i]);
}

void Activate(Activation activation, const float* gate, const float* up, int count, float* out) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const bool clamped = activation == Activation::ClampedSwiGlu;
    const auto one = hn::Set(tag, 1.0f), limit = hn::Set(tag, kClampedLimit);
    auto g = hn::LoadU(tag, gate + at), u = hn::LoadU(tag, up + at);
    // Comparisons keep NaN.
    if (clamped) {
      g = hn::IfThenElse(hn::Gt(g, limit), limit, g);
      u = hn::IfThenElse(hn::Gt(u, limit), limit, hn::IfThenElse(hn::Lt(u, hn::Neg(limit)), hn::Neg(limit), u));
      u = hn::Add(u, one);
    }
    const auto cubic = hn::MulAdd(hn::Mul(g, g), hn::Set(tag, kGeluCubic), hn::Set(tag, kGeluLinear));
    const auto exponent = activation == Activation::Gelu ? hn::Mul(g, cubic)
                          : clamped                      ? hn::Mul(g, hn::Set(tag, kClampedSlope))
                                                         : g;
    hn::StoreU(hn::Mul(hn::Mul(g, Sigmoid(tag, exponent)), u), tag, out + at);
  });
}

void CapBy(float cap, int count, float* x) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const auto exponent = hn::Mul(hn::LoadU(tag, x + at), hn::Set(tag, 2 / cap));
    hn::StoreU(hn::MulSub(Sigmoid(tag, exponent), hn::Set(tag, 2 * cap), hn::Set(tag, cap)), tag, x + at);
  });
}

void SigmoidMultiply(const float* gate, int count, float* x) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(tag, x + at), Sigmoid(tag, hn::LoadU(tag, gate + at))), tag, x + at);
  });
}

void ConvolveSilu(const float* const* rows, const float* taps, int count, int width, float* to) {
  ForEach(width, [&](int at, auto tag) HWY_ATTR {
    auto sum = hn::Zero(tag);
    if (count == 4) {  // of all published models
      auto a = sum, b = sum, c = sum, e = sum;
      hn::LoadInterleaved4(tag, taps + int64_t{4} * at, a, b, c, e);
      sum = hn::Mul(a, hn::LoadU(tag, rows[0] + at));
      sum = hn::MulAdd(b, hn::LoadU(tag, rows[1] + at), sum);
      sum = hn::MulAdd(c, hn::LoadU(tag, rows[2] + at), sum);
      sum = hn::MulAdd(e, hn::LoadU(tag, rows[3] + at), sum);
    } else {
      const hn::RebindToSigned<decltype(tag)> indices;
      const auto places = hn::Mul(hn::Iota(indices, 0), hn::Set(indices, count));
      for (int t = 0; t < count; ++t) {
        const auto tap = hn::GatherIndex(tag, taps + int64_t{count} * at + t, places);
        sum = hn::MulAdd(tap, hn::LoadU(tag, rows[t] + at), sum);
      }
    }
    hn::StoreU(hn::Mul(sum, Sigmoid(tag, sum)), tag, to + at);
  });
}

void ScaleToLength(float* x, int count, float epsilon, float scale) {
  const float factor = scale / std::sqrt(SumOfSquares(x, count) + epsilon);
  ForEach(count, [&](int at, auto tag)
                     HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(tag, x + at), hn::Set(tag, factor)), tag, x + at); });
}

void AddTo(const float* from, int count, float* to) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(tag, to + at), hn::LoadU(tag, from + at)), tag, to + at);
  });
}

void ScaleBy(float factor, int count, float* to) {
  ForEach(count, [&](int at, auto tag)
                     HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(tag, to + at), hn::Set(tag, factor)), tag, to + at); });
}

void PoolMax(const float* scores, int count, float* pooled) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const auto s = hn::LoadU(tag, scores + at);
    const auto p = hn::LoadU(tag, pooled + at);
    // Comparisons with NaN are false: keep p unless s is greater or p is no number.
    hn::StoreU(hn::IfThenElse(hn::Or(hn::Gt(s, p), hn::IsNaN(p)), s, p), tag, pooled + at);
  });
}

void PoolProbabilities(const float* scores, int count, float maximum, float scale, float factor, float* pooled) {
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const auto x = hn::MulSub(hn::LoadU(tag, scores + at), hn::Set(tag, scale), hn::Set(tag, maximum));
    const auto p = hn::Exp(tag, x);
    hn::StoreU(hn::MulAdd(p, hn::Set(tag, factor), hn::LoadU(tag, pooled + at)), tag, pooled + at);
  });
}

float SoftmaxStep(float* scores, int count, float scale, float& maximum, float& sum) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const float lowest = -std::numeric_limits<float>::infinity();
  const float before = maximum;
  Vec tops = hn::Set(d, before);
  int i = 0;
  for (; i + lanes <= count; i += lanes) tops = hn::Max(tops, hn::Mul(hn::LoadU(d, scores + i), hn::Set(d, scale)));
  float top = hn::GetLane(hn::MaxOfLanes(d, tops));
  for (; i < count; ++i) top = std::max(top, scores[i] * scale);
  maximum = top;
  const float base = top == lowest ? 0.0f : top;
  Vec totals = hn::Zero(d);
  float total = 0;
  ForEach(count, [&](int at, auto tag) HWY_ATTR {
    const auto x = hn::MulSub(hn::LoadU(tag, scores + at), hn::Set(tag, scale), hn::Set(tag, base));
    const auto w = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(tag, x));
    hn::StoreU(w, tag, scores + at);
  });
  for (i = 0; i + lanes <= count; i += lanes) totals = hn::Add(totals, hn::LoadU(d, scores + i));
  for (; i < count; ++i) total += scores[i];
  const float shrink = before == lowest ? 0.0f : std::exp(before - base);
  sum = sum * shrink + total + hn::GetLane(hn::SumOfLanes(d, totals));
  return shrink;
}

void SoftmaxStatistics(const float* scores, int count, float scale, float& maximum, float& sum) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Vec tops = hn::Set(d, -std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + lanes <= count; i += lanes) tops = hn::Max(tops, hn::Mul(hn::LoadU(d, scores + i), hn::Set(d, scale)));
  maximum = hn::GetLane(hn::MaxOfLanes(d, tops));
  for (; i < count; ++i) maximum = std::max(maximum, scores[i] * scale);
  Vec totals = hn::Zero(d);
  sum = 0;
  for (i = 0; i < count;) {
    const auto add = [&](auto tag) HWY_ATTR {
      const auto x = hn::MulSub(hn::LoadU(tag, scores + i), hn::Set(tag, scale), hn::Set(tag, maximum));
      return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(tag, x));
    };
    if (i + lanes <= count) {
      totals = hn::Add(totals, add(d));
      i += lanes;
    } else {
      sum += hn::GetLane(add(hn::CappedTag<float, 1>()));
      ++i;
    }
  }
  sum += hn::GetLane(hn::SumOfLanes(d, totals));
}

// 2^x, 0 below 2^-125 and not finite from 2^128 on, by a polynomial fitted on [-0.5, 0.5] for the fraction: added
// to 1.5 * 2^23 x becomes whole, and the sum's lowest bits go into the exponent.
template <typename D, typename V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const V magic = hn::Set(d, 0x1.8p23f);
  // Up to 2^129, whose exponent is that of infinity.
  x = hn::IfThenElse(hn::Gt(x, hn::Set(d, 128.0f)), hn::Set(d, 128.0f), x);
  const V shifted = hn::Add(x, magic);
  const V part = hn::Sub(x, hn::Sub(shifted, magic));
  V y = hn::Set(d, 1.32217e-3f);
  y = hn::MulAdd(y, part, hn::Set(d, 9.67716e-3f));
  y = hn::MulAdd(y, part, hn::Set(d, 5.550958e-2f));
  y = hn::MulAdd(y, part, hn::Set(d, 2.4022135e-1f));
  y = hn::MulAdd(y, part, hn::Set(d, 6.9314674e-1f));
  y = hn::MulAdd(y, part, hn::Set(d, 1.0f));
  const auto scaled = hn::Add(hn::BitCast(du, y), hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  // NaN compares as false, and stays: the sum of its bits would be anything.
  const V result = hn::IfThenElse(hn::IsNaN(x), x, hn::BitCast(d, scaled));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -125.0f)), result);
}

float SoftmaxTerms(float* scores, int count, float scale, float reference) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto term = [&](int at, auto tag) HWY_ATTR {
    const auto x = hn::MulSub(hn::LoadU(tag, scores + at), hn::Set(tag, scale), hn::Set(tag, reference));
    const auto y = Exp2(tag, x);
    hn::StoreU(y, tag, scores + at);
    return y;
  };
  Vec totals = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= count; i += lanes) totals = hn::Add(totals, term(i, d));
  float sum = hn::GetLane(hn::SumOfLanes(d, totals));
  for (; i < count; ++i) sum += hn::GetLane(term(i, hn::CappedTag<float, 1>()));
  return sum;
}

void WeightedSum(const float* rows, int64_t stride, const float* factors, int count, int width, float* to) {
  ForEach(width, [&](int at, auto tag) HWY_ATTR {
    auto sum = hn::Mul(hn::LoadU(tag, rows + at), hn::Set(tag, factors[0]));
    for (int r = 1; r < count; ++r) {
      sum = hn::MulAdd(hn::LoadU(tag, rows + r * stride + at), hn::Set(tag, factors[r]), sum);
    }
    hn::StoreU(sum, tag, to + at);
  });
}

void KeyScores(const float* q, int heads, const KvRowLayout& layout, const std::byte* const* rows, int count,
               float* scores, int64_t stride) {
  constexpr int kAhead = 4;  // rows anywhere in memory that are asked for before their turn
  const int head_dim = layout.head_dim;
  const F32 d;
  const hn::Rebind<uint16_t, F32> d16;
  const hn::Rebind<uint32_t, F32> d32;
  const int lanes = static_cast<int>(hn::Lanes(d));
  HWY_ALIGN float key[kMostHeadDim];
  const int key_bytes = static_cast<int>(layout.bytes()) / 2;
  for (int r = 0; r < count; ++r) {
    const std::byte* const row = rows[r];
    for (int line = 0; r + kAhead < count && line < key_bytes; line += 64) hwy::Prefetch(rows[r + kAhead] + line);
    int i = 0;
    if (layout.type == KvType::Q8) {
      read_q8(layout, row, false, key);
    } else if (layout.type == KvType::F32) {
      std::memcpy(key, row, sizeof(float) * static_cast<size_t>(head_dim));
    } else {
      const auto* keys = reinterpret_cast<const Bf16*>(row);
      const auto* halves = reinterpret_cast<const uint16_t*>(row);
      for (; i + lanes <= head_dim; i += lanes) {
        hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, halves + i)))), d, key + i);
      }
      for (; i < head_dim; ++i) key[i] = to_float(keys[i]);
    }
    for (int h = 0; h < heads; ++h) {
      const float* own = q + static_cast<int64_t>(h) * head_dim;
      Vec sums = hn::Zero(d);
      float sum = 0;
      for (i = 0; i + lanes <= head_dim; i += lanes) {
        sums = hn::MulAdd(hn::LoadU(d, own + i), hn::LoadU(d, key + i), sums);
      }
      for (; i < head_dim; ++i) sum += own[i] * key[i];
      scores[h * stride + r] = sum + hn::GetLane(hn::SumOfLanes(d, sums));
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(FloatsToBf16);
HWY_EXPORT(Activate);
HWY_EXPORT(CapBy);
HWY_EXPORT(SigmoidMultiply);
HWY_EXPORT(ConvolveSilu);
HWY_EXPORT(ScaleToLength);
HWY_EXPORT(AddTo);
HWY_EXPORT(ScaleBy);
HWY_EXPORT(PoolMax);
HWY_EXPORT(PoolProbabilities);
HWY_EXPORT(SoftmaxStep);
HWY_EXPORT(SoftmaxStatistics);
HWY_EXPORT(SoftmaxTerms);
HWY_EXPORT(WeightedSum);
HWY_EXPORT(KeyScores);

void rms_norm(const float* x, const float* weight, int count, float epsilon, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, count, epsilon, out);
}
void floats_to_bf16(const float* from, int count, Bf16* to) { HWY_DYNAMIC_DISPATCH(FloatsToBf16)(from, count, to); }
void activate(Activation activation, const float* gate, const float* up, int count, float* out) {
  HWY_DYNAMIC_DISPATCH(Activate)(activation, gate, up, count, out);
}
void sigmoid_multiply(const float* gate, int count, float* x) { HWY_DYNAMIC_DISPATCH(SigmoidMultiply)(gate, count, x); }
void convolve_silu(const float* const* rows, const float* taps, int count, int width, float* to) {
  HWY_DYNAMIC_DISPATCH(ConvolveSilu)(rows, taps, count, width, to);
}
void scale_to_length(float* x, int count, float epsilon, float scale) {
  HWY_DYNAMIC_DISPATCH(ScaleToLength)(x, count, epsilon, scale);
}
void cap_by(float cap, int count, float* x) { HWY_DYNAMIC_DISPATCH(CapBy)(cap, count, x); }
void add_to(const float* from, int count, float* to) { HWY_DYNAMIC_DISPATCH(AddTo)(from, count, to); }
void scale_by(float factor, int count, float* to) { HWY_DYNAMIC_DISPATCH(ScaleBy)(factor, count, to); }
void pool_max(const float* scores, int count, float* pooled) { HWY_DYNAMIC_DISPATCH(PoolMax)(scores, count, pooled); }
void pool_probabilities(const float* scores, int count, float maximum, float scale, float factor, float* pooled) {
  HWY_DYNAMIC_DISPATCH(PoolProbabilities)(scores, count, maximum, scale, factor, pooled);
}
float softmax_step(float* scores, int count, float scale, float& maximum, float& sum) {
  return HWY_DYNAMIC_DISPATCH(SoftmaxStep)(scores, count, scale, maximum, sum);
}
void softmax_statistics(const float* scores, int count, float scale, float& maximum, float& sum) {
  HWY_DYNAMIC_DISPATCH(SoftmaxStatistics)(scores, count, scale, maximum, sum);
}
float softmax_terms(float* scores, int count, float scale, float reference) {
  return HWY_DYNAMIC_DISPATCH(SoftmaxTerms)(scores, count, scale, reference);
}
void weighted_sum(const float* rows, int64_t stride, const float* factors, int count, int width, float* to) {
  HWY_DYNAMIC_DISPATCH(WeightedSum)(rows, stride, factors, count, width, to);
}
void key_scores(const float* q, int heads, const KvRowLayout& layout, const std::byte* const* rows, int count,
                float* scores, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(KeyScores)(q, heads, layout, rows, count, scores, stride);
}

}  // namespace tidal
#endif  // HWY_ONCE
