#include "backend/cpu/top_k.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/top_k.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tidal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using Keys = hn::Vec<I32>;

constexpr int kMaxGroups = 4096;      // of scores, whose highest ones bound the k-th highest from below
constexpr int kMaxCandidates = 4096;  // scores at or above the bound
constexpr int kGroupsPerChoice = 4;   // groups for each score that is asked for: little more than k are above the bound

// Order-preserving: a < b as floats if and only if key(a) < key(b) as integers. NaN is the lowest.
HWY_INLINE Keys LoadKeys(const float* scores) {
  const F32 d;
  const I32 di;
  const auto plus_zero = hn::Add(hn::LoadU(d, scores), hn::Zero(d));
  const auto bits = hn::BitCast(di, plus_zero);
  const auto key = hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), hn::Set(di, 0x7fffffff)));
  return hn::IfThenElse(hn::RebindMask(di, hn::IsNaN(plus_zero)), hn::Set(di, std::numeric_limits<int32_t>::min()),
                        key);
}

// How many keys of whole vectors are at least `least`.
HWY_INLINE int CountFrom(const int32_t* keys, int count, int32_t least) {
  const I32 di;
  const int lanes = static_cast<int>(hn::Lanes(di));
  const Keys bound = hn::Set(di, least);
  Keys lower = hn::Zero(di), more = lower;
  int i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    lower = hn::Sub(lower, hn::VecFromMask(di, hn::Lt(hn::LoadU(di, keys + i), bound)));
    more = hn::Sub(more, hn::VecFromMask(di, hn::Lt(hn::LoadU(di, keys + i + lanes), bound)));
  }
  if (i < count) lower = hn::Sub(lower, hn::VecFromMask(di, hn::Lt(hn::LoadU(di, keys + i), bound)));
  return count - hn::GetLane(hn::SumOfLanes(di, hn::Add(lower, more)));
}

// The k-th highest key, bit by bit from the top; the lowest `rough` bits are left 0.
HWY_INLINE int32_t Threshold(const int32_t* keys, int count, int k, int rough) {
  uint32_t found = 0;  // the order of unsigned integers: the sign's bit is turned
  for (int bit = 31; bit >= rough; --bit) {
    const uint32_t trial = found | 1u << bit;
    if (CountFrom(keys, count, static_cast<int32_t>(trial ^ 0x80000000u)) >= k) found = trial;
  }
  return static_cast<int32_t>(found ^ 0x80000000u);
}

// Takes only few scores into account: those above a bound that at least k of them reach. Returns false, having written
// nothing, when that leaves too many.
bool FewOf(const float* scores, int first, int count, int k, int32_t* positions) {
  const I32 di;
  const int lanes = static_cast<int>(hn::Lanes(di));
  const int vectors = count / lanes;  // a last one that is not whole is gone through by itself
  const int run = vectors / ((kGroupsPerChoice * k + lanes - 1) / lanes);  // vectors, of which each lane is a group
  if (run < 2 || (vectors + run - 1) / run * lanes > kMaxGroups) return false;

  HWY_ALIGN int32_t highest[kMaxGroups];
  int groups = 0;
  for (int v = 0; v < vectors; v += run, groups += lanes) {
    Keys top = LoadKeys(scores + v * lanes);
    for (int i = v + 1; i < std::min(v + run, vectors); ++i) top = hn::Max(top, LoadKeys(scores + i * lanes));
    hn::Store(top, di, highest + groups);
  }
  const int32_t bound = Threshold(highest, groups, k, 16);

  HWY_ALIGN int32_t keys[kMaxCandidates + hn::MaxLanes(di)];
  HWY_ALIGN int32_t places[kMaxCandidates + hn::MaxLanes(di)];
  int candidates = 0;
  for (int at = 0; at < count; at += lanes) {
    HWY_ALIGN float last[hn::MaxLanes(di)];
    const float* from = scores + at;
    if (at + lanes > count) {
      std::fill(std::copy(from, scores + count, last), last + lanes, std::numeric_limits<float>::quiet_NaN());
      from = last;
    }
    const Keys key = LoadKeys(from);
    const auto high = hn::Not(hn::Lt(key, hn::Set(di, bound)));
    if (HWY_LIKELY(hn::AllFalse(di, high))) continue;
    if (candidates + lanes > kMaxCandidates) return false;
    hn::StoreU(hn::Compress(key, high), di, keys + candidates);
    hn::StoreU(hn::Compress(hn::Iota(di, at), high), di, places + candidates);
    candidates += static_cast<int>(hn::CountTrue(di, high));
  }
  hn::StoreU(hn::Set(di, std::numeric_limits<int32_t>::min()), di, keys + candidates);
  const int whole = (candidates + lanes - 1) / lanes * lanes;
  const int32_t least = Threshold(keys, whole, k, 0);
  int equal = k - CountFrom(keys, whole, least + 1);
  for (int i = 0, taken = 0; i < candidates && taken < k; ++i) {
    positions[taken] = first + places[i];
    const bool belongs = keys[i] > least || (keys[i] == least && equal-- > 0);
    taken += belongs ? 1 : 0;
  }
  return true;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tidal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tidal {
namespace {

HWY_EXPORT(FewOf);

// As LoadKeys() has it, of unsigned integers: NaN is 0, below -infinity.
uint32_t key(float score) {
  const float plus_zero = score + 0.0f;
  const auto bits = std::bit_cast<uint32_t>(plus_zero);
  if (plus_zero != plus_zero) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The k-th highest key, digit by digit from the top; on return k is how many of the scores equal to it belong.
uint32_t threshold(const float* scores, int count, int& k) {
  constexpr std::array<int, 3> shifts = {21, 10, 0};
  constexpr std::array<int, 3> widths = {11, 11, 10};
  uint32_t found = 0;
  uint32_t mask = 0;
  for (std::size_t digit = 0; digit < shifts.size(); ++digit) {
    std::array<int32_t, 2048> histogram{};
    const uint32_t digits = (1u << widths[digit]) - 1;
    for (int i = 0; i < count; ++i) {
      const uint32_t value = key(scores[i]);
      if ((value & mask) == found) ++histogram[(value >> shifts[digit]) & digits];
    }
    uint32_t bin = digits;
    while (histogram[bin] < k) k -= histogram[bin--];
    found |= bin << shifts[digit];
    mask |= digits << shifts[digit];
  }
  return found;
}

}  // namespace

void top_k(const float* scores, int first, int count, int k, int32_t* positions) {
  if (k <= 0) return;
  scores += first;
  if (HWY_DYNAMIC_DISPATCH(FewOf)(scores, first, count, k, positions)) return;
  int equal = k;
  const uint32_t least = threshold(scores, count, equal);
  for (int i = 0; i < count; ++i) {
    const uint32_t value = key(scores[i]);
    if (value > least || (value == least && equal-- > 0)) *positions++ = first + i;
  }
}

}  // namespace tidal
#endif  // HWY_ONCE
