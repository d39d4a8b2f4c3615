#include "backend/cpu/delta_ops.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/delta_ops.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;

// Calls body(offset, tag) over [0, count): whole vectors, then single elements.
template <typename Body>
HWY_INLINE void ForEach(int count, const Body& body) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int i = 0;
  for (; i + lanes <= count; i += lanes) body(i, d);
  for (; i < count; ++i) body(i, One());
}

template <typename D, typename V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  // hn::Exp wraps around above 104; at 88 the sigmoid is as good as 0. It maps NaN to 0.
  const V sigmoid = hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)))));
  return hn::IfThenElse(hn::IsNaN(x), x, sigmoid);
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
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto squares = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; i < count; ++i) sum += x[i] * x[i];
  const float factor = scale / std::sqrt(sum + epsilon);
  ForEach(count, [&](int at, auto tag)
                     HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(tag, x + at), hn::Set(tag, factor)), tag, x + at); });
}

// kVectors columns of S at once: so many that they stay in the first-level cache from row to row. Four partial sums
// each, so that one does not wait for the other.
template <int kVectors, typename D>
HWY_INLINE void Columns(D d, const DeltaRows& a, int first) {
  using V = hn::Vec<D>;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float* const s = a.s + first;
  for (int r = 0; r < a.rows; ++r) {
    const float* q = a.q + r * a.stride;
    const float* k = a.k + r * a.stride;
    const V kept = hn::Set(d, a.kept[r * a.factor_stride]), written = hn::Set(d, a.written[r * a.factor_stride]);
    V sums[kVectors][4];
    for (auto& own : sums) own[0] = own[1] = own[2] = own[3] = hn::Zero(d);
    int i = 0;
    for (; i + 4 <= a.dim; i += 4) {
      for (int t = 0; t < 4; ++t) {
        const V key = hn::Set(d, k[i + t]);
        for (int n = 0; n < kVectors; ++n) {
          sums[n][t] = hn::MulAdd(hn::LoadU(d, s + int64_t{i + t} * a.dim + n * lanes), key, sums[n][t]);
        }
      }
    }
    for (; i < a.dim; ++i) {
      const V key = hn::Set(d, k[i]);
      for (int n = 0; n < kVectors; ++n) {
        sums[n][0] = hn::MulAdd(hn::LoadU(d, s + int64_t{i} * a.dim + n * lanes), key, sums[n][0]);
      }
    }
    V correction[kVectors];
    for (int n = 0; n < kVectors; ++n) {
      const V expected = hn::Add(hn::Add(sums[n][0], sums[n][1]), hn::Add(sums[n][2], sums[n][3]));
      const V value = hn::LoadU(d, a.v + r * a.stride + first + n * lanes);
      correction[n] = hn::Mul(written, hn::NegMulAdd(kept, expected, value));
      sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = hn::Zero(d);
    }
    const auto update = [&](int at, int t) HWY_ATTR {
      const V key = hn::Set(d, k[at]), query = hn::Set(d, q[at]);
      for (int n = 0; n < kVectors; ++n) {
        float* place = s + int64_t{at} * a.dim + n * lanes;
        const V next = hn::MulAdd(key, correction[n], hn::Mul(kept, hn::LoadU(d, place)));
        hn::StoreU(next, d, place);
        sums[n][t] = hn::MulAdd(next, query, sums[n][t]);
      }
    };
    for (i = 0; i + 4 <= a.dim; i += 4) {
      for (int t = 0; t < 4; ++t) update(i + t, t);
    }
    for (; i < a.dim; ++i) update(i, 0);
    for (int n = 0; n < kVectors; ++n) {
      const V read = hn::Add(hn::Add(sums[n][0], sums[n][1]), hn::Add(sums[n][2], sums[n][3]));
      hn::StoreU(read, d, a.out + r * a.out_stride + first + n * lanes);
    }
  }
}

void DeltaColumns(const DeltaRows& rows, int first, int count) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d)), end = first + count;
  for (; first + 2 * lanes <= end; first += 2 * lanes) Columns<2>(d, rows, first);
  for (; first + lanes <= end; first += lanes) Columns<1>(d, rows, first);
  for (; first < end; ++first) Columns<1>(One(), rows, first);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {

HWY_EXPORT(SigmoidMultiply);
HWY_EXPORT(ConvolveSilu);
HWY_EXPORT(ScaleToLength);
HWY_EXPORT(DeltaColumns);

void sigmoid_multiply(const float* gate, int count, float* x) { HWY_DYNAMIC_DISPATCH(SigmoidMultiply)(gate, count, x); }
void convolve_silu(const float* const* rows, const float* taps, int count, int width, float* to) {
  HWY_DYNAMIC_DISPATCH(ConvolveSilu)(rows, taps, count, width, to);
}
void scale_to_length(float* x, int count, float epsilon, float scale) {
  HWY_DYNAMIC_DISPATCH(ScaleToLength)(x, count, epsilon, scale);
}
void delta_rows(const DeltaRows& rows, int first, int count) { HWY_DYNAMIC_DISPATCH(DeltaColumns)(rows, first, count); }

}  // namespace tidal
#endif  // HWY_ONCE
