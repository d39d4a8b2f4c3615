#include "backend/cpu/delta_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/delta_ops.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;

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

HWY_EXPORT(DeltaColumns);

void delta_rows(const DeltaRows& rows, int first, int count) { HWY_DYNAMIC_DISPATCH(DeltaColumns)(rows, first, count); }

}  // namespace tidal
#endif  // HWY_ONCE
