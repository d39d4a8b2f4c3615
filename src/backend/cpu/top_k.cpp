#include "backend/cpu/top_k.h"

#include <array>
#include <bit>
#include <cstddef>

namespace tidal {
namespace {

// Order-preserving: a < b as floats if and only if key(a) < key(b). NaN maps to 0, below -infinity.
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
  int equal = k;
  const uint32_t least = threshold(scores, count, equal);
  for (int i = 0; i < count; ++i) {
    const uint32_t value = key(scores[i]);
    if (value > least || (value == least && equal-- > 0)) *positions++ = first + i;
  }
}

}  // namespace tidal
