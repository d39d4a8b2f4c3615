#include "backend/cpu/value_sums.h"

#include <type_traits>

#include "backend/sketch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/value_sums.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
// A plane of a row of codes at most, so that all its channels have their codes at the same bit.
using Channels = hn::CappedTag<float, ValueSketchLayout::kPlane>;
using Sum = hn::Vec<Channels>;

constexpr int kHeads = 8;  // whose sums fit in registers together
template <int kCount>
using Few = std::integral_constant<int, kCount>;

void BlockSums(const float* terms, int blocks, float* sums) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int b = 0; b < blocks; ++b, terms += kBlockTokens) {
    auto total = hn::LoadU(d, terms);
    for (int i = lanes; i < kBlockTokens; i += lanes) total = hn::Add(total, hn::LoadU(d, terms + i));
    sums[b] = hn::GetLane(hn::SumOfLanes(d, total));
  }
}

/// out[h * head_dim + d] += sum over i < count of weights[h * stride + i] * load(i, d), `Lanes` channels d at a time.
template <int kCount, typename Load>
HWY_INLINE void AddHeads(int head_dim, int count, const float* weights, std::ptrdiff_t stride, float* out,
                         const Load& load) {
  const Channels tag;
  const int lanes = static_cast<int>(hn::Lanes(tag));
  for (int d = 0; d < head_dim; d += lanes) {
    Sum sums[kCount];
    for (int h = 0; h < kCount; ++h) sums[h] = hn::LoadU(tag, out + h * head_dim + d);
    for (int i = 0; i < count; ++i) {
      const Sum values = load(i, d);
      for (int h = 0; h < kCount; ++h) {
        sums[h] = hn::MulAdd(hn::Set(tag, weights[h * stride + i]), values, sums[h]);
      }
    }
    for (int h = 0; h < kCount; ++h) hn::StoreU(sums[h], tag, out + h * head_dim + d);
  }
}

template <typename Load>
HWY_INLINE void AddAll(int head_dim, int heads, int count, const float* weights, std::ptrdiff_t stride, float* out,
                       const Load& load) {
  const auto add = [&](int first, auto few) HWY_ATTR {
    AddHeads<few()>(head_dim, count, weights + first * stride, stride,
                    out + static_cast<std::ptrdiff_t>(first) * head_dim, load);
  };
  int h = 0;
  for (; h + kHeads <= heads; h += kHeads) add(h, Few<kHeads>());
  switch (heads - h) {
    case 7: return add(h, Few<7>());
    case 6: return add(h, Few<6>());
    case 5: return add(h, Few<5>());
    case 4: return add(h, Few<4>());
    case 3: return add(h, Few<3>());
    case 2: return add(h, Few<2>());
    case 1: return add(h, Few<1>());
    default: return;
  }
}

void AddMeans(const ValueSketchLayout& layout, const std::byte* const* sketches, int blocks, const float* weights,
              std::ptrdiff_t stride, int heads, float* out) {
  const Channels tag;
  const hn::Rebind<uint16_t, Channels> halves;
  const hn::Rebind<uint32_t, Channels> words;
  const auto load = [&](int b, int d) HWY_ATTR {
    const auto* const mean = reinterpret_cast<const uint16_t*>(sketches[b]) + d;
    return hn::BitCast(tag, hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(halves, mean))));
  };
  AddAll(layout.head_dim, heads, blocks, weights, stride, out, load);
}

void AddCodes(const ValueSketchLayout& layout, const std::byte* const* rows, int count, const float* weights,
              std::ptrdiff_t stride, int heads, float* out) {
  const Channels tag;
  const hn::Rebind<uint8_t, Channels> bytes;
  const hn::Rebind<int32_t, Channels> words;
  const auto load = [&](int i, int d) HWY_ATTR {
    const auto* const codes = reinterpret_cast<const uint8_t*>(rows[i]) + (layout.byte(0, d) - layout.codes_offset());
    const auto code =
        hn::And(hn::ShiftRightSame(hn::PromoteTo(words, hn::LoadU(bytes, codes)), layout.shift(d)), hn::Set(words, 3));
    return hn::Sub(hn::ConvertTo(tag, code), hn::Set(tag, 1.5f));
  };
  AddAll(layout.head_dim, heads, count, weights, stride, out, load);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {

HWY_EXPORT(BlockSums);
HWY_EXPORT(AddMeans);
HWY_EXPORT(AddCodes);

void block_sums(const float* terms, int blocks, float* sums) { HWY_DYNAMIC_DISPATCH(BlockSums)(terms, blocks, sums); }
void add_means(const ValueSketchLayout& layout, const std::byte* const* sketches, int blocks, const float* weights,
               std::ptrdiff_t stride, int heads, float* out) {
  HWY_DYNAMIC_DISPATCH(AddMeans)(layout, sketches, blocks, weights, stride, heads, out);
}
void add_codes(const ValueSketchLayout& layout, const std::byte* const* rows, int count, const float* weights,
               std::ptrdiff_t stride, int heads, float* out) {
  HWY_DYNAMIC_DISPATCH(AddCodes)(layout, rows, count, weights, stride, heads, out);
}

}  // namespace tidal
#endif  // HWY_ONCE
