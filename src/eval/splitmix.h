// The random numbers of prompts: the same for the same seed, wherever they are drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace tidal {

/// A splitmix64 generator (Steele, Lea and Flood 2014).
class Splitmix {
 public:
  explicit Splitmix(uint64_t seed) : state_(seed) {}
  /// One for each list of parts.
  Splitmix(uint64_t seed, std::initializer_list<int64_t> parts) : state_(seed) {
    for (const int64_t part : parts) state_ = next() ^ static_cast<uint64_t>(part);
  }

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  /// 0 to count - 1.
  size_t below(size_t count) { return static_cast<size_t>(next() % count); }
  /// Puts the values in another order (Fisher and Yates).
  template <typename Value>
  void shuffle(std::vector<Value>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  uint64_t state_;
};

}  // namespace tidal
