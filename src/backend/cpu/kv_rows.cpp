#include "backend/cpu/kv_rows.h"

#include <cstring>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/kv_rows.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// No vector straddles two scales: heads are multiples of 16, scales are of 32.
using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;

/// Calls put(i, the vector of elements from i on).
template <typename Put>
HWY_INLINE void EachVector(const KvRowLayout& layout, const std::byte* row, bool value, const Put& put) {
  const F32 d;
  const hn::Rebind<int32_t, F32> d32;
  const hn::Rebind<int8_t, F32> d8;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto* const codes = reinterpret_cast<const int8_t*>(row) + (value ? layout.head_dim : 0);
  const std::byte* const scales =
      row + layout.scales_offset() + (value ? sizeof(uint16_t) * static_cast<size_t>(layout.scales()) : 0);
  Vec scale = hn::Zero(d);
  for (int i = 0; i < layout.head_dim; i += lanes) {
    if (i % kKvScaleBlock == 0) {
      uint16_t half;
      std::memcpy(&half, scales + sizeof half * static_cast<size_t>(i / kKvScaleBlock), sizeof half);
      scale = hn::Set(d, half_to_float(half));
    }
    put(i, hn::Mul(scale, hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, codes + i)))));
  }
}

void ToFloats(const KvRowLayout& layout, const std::byte* row, bool value, float* to) {
  const F32 d;
  EachVector(layout, row, value, [&](int i, Vec v) { hn::StoreU(v, d, to + i); });
}

void ToBf16(const KvRowLayout& layout, const std::byte* row, bool value, Bf16* to) {
  const hn::Rebind<uint32_t, F32> du;
  const hn::Rebind<uint16_t, F32> d16;
  auto* const bits = reinterpret_cast<uint16_t*>(to);
  EachVector(layout, row, value, [&](int i, Vec v) {
    // As to_bf16(); what is no number is of the one kind that a scale may be, which rounding leaves what it is.
    const auto x = hn::BitCast(du, v);
    const auto even = hn::And(hn::ShiftRight<16>(x), hn::Set(du, 1u));
    const auto rounded = hn::ShiftRight<16>(hn::Add(x, hn::Add(hn::Set(du, 0x7fffu), even)));
    hn::StoreU(hn::TruncateTo(d16, rounded), d16, bits + i);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {

HWY_EXPORT(ToFloats);
HWY_EXPORT(ToBf16);

void read_q8(const KvRowLayout& layout, const std::byte* row, bool value, float* to) {
  HWY_DYNAMIC_DISPATCH(ToFloats)(layout, row, value, to);
}
void read_q8(const KvRowLayout& layout, const std::byte* row, bool value, Bf16* to) {
  HWY_DYNAMIC_DISPATCH(ToBf16)(layout, row, value, to);
}

}  // namespace tidal
#endif  // HWY_ONCE
