// Random test inputs that can be had again: every test draws from one seed, printed when it fails.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace tidal::test {

/// TIDAL_TEST_SEED: a number, or `random` for another one every run. A fixed seed otherwise, so that a test that passed
/// yesterday passes today. Printed once.
inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("TIDAL_TEST_SEED");
    const std::string given = text ? text : "20241";
    const uint64_t value = given == "random" ? std::random_device()() : std::strtoull(given.c_str(), nullptr, 10);
    std::printf("TIDAL_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

class Random {
 public:
  /// `stream` tells apart the inputs of one test.
  explicit Random(uint64_t stream = 0) {
    std::seed_seq sequence{test_seed(), stream};
    engine_.seed(sequence);
  }

  /// Uniform in [low, high].
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  /// Uniform in [-bound, bound).
  float uniform(float bound) { return std::uniform_real_distribution<float>(-bound, bound)(engine_); }
  float normal(float deviation) { return std::normal_distribution<float>(0, deviation)(engine_); }

  std::vector<float> uniform(size_t count, float bound) {
    std::vector<float> values(count);
    for (float& value : values) value = uniform(bound);
    return values;
  }
  /// 0 .. count - 1 in any order.
  std::vector<int32_t> permutation(int count) {
    std::vector<int32_t> values(count);
    std::iota(values.begin(), values.end(), 0);
    std::shuffle(values.begin(), values.end(), engine_);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace tidal::test
