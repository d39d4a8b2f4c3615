#include "common.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/error.h"
#include "core/read_stream.h"

namespace tidal::bench {
namespace {

// A linear congruential generator: quality does not matter, the values need only differ and be finite.
class Noise {
 public:
  float operator()() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }

 private:
  uint64_t state_ = 1;
};

}  // namespace

int threads() {
  static const int count = [] {
    const char* words = std::getenv("TIDAL_THREADS");
    const int asked = words ? std::atoi(words) : static_cast<int>(std::thread::hardware_concurrency());
    return std::max(asked, 1);
  }();
  return count;
}

double read_stream() {
  static const double limit = ReadStream(threads()).measure();
  return limit;
}

size_t cold_bytes() {
  size_t largest = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) {
    largest = std::max(largest, static_cast<size_t>(cache.size));
  }
  return std::max(2 * largest, size_t{256} << 20);
}

Backend& backend() {
  static const std::unique_ptr<Backend> cpu = make_cpu_backend(threads());
  return *cpu;
}

void fill_noise(Bf16* data, size_t count) {
  constexpr size_t kPattern = 1 << 18;
  Noise random;
  for (size_t i = 0; i < std::min(count, kPattern); ++i) data[i] = to_bf16(random());
  for (size_t at = kPattern; at < count; at += kPattern) {
    std::copy_n(data, std::min(kPattern, count - at), data + at);
  }
}

std::vector<float> noise(size_t count) {
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), Noise());
  return values;
}

Weights::Weights(ggml_type type, int64_t rows, int64_t cols) {
  if (cols % ggml_blck_size(type) != 0) fail("bench: rows of {} cannot be {}", cols, ggml_type_name(type));
  constexpr int64_t kPattern = 64;  // rows that are quantised; the others repeat them
  const std::vector<float> values = noise(static_cast<size_t>(kPattern * cols));
  const size_t row = ggml_row_size(type, cols), one = row * static_cast<size_t>(rows);
  std::vector<std::byte> pattern(row * kPattern);
  ggml_quantize_chunk(type, values.data(), pattern.data(), 0, kPattern, cols, nullptr);
  const size_t count = std::max<size_t>(1, (cold_bytes() + one - 1) / one);
  memory_ = backend().allocate(one * count, "benchmark's weights");
  for (size_t i = 0; i < count; ++i) {
    std::byte* data = memory_.as<std::byte>() + i * one;
    for (size_t at = 0; at < one; at += pattern.size()) {
      std::memcpy(data + at, pattern.data(), std::min(pattern.size(), one - at));
    }
    weights_.push_back({type, rows, cols, data});
  }
}

// Plain numbers, not benchmark's rates: those print as "GB/s=30/s".
void count_bytes(benchmark::State& state, double bytes, double seconds) {
  state.counters["GB/s"] = bytes * 1e-9 / seconds;
  state.counters["of_limit"] = bytes * 1e-9 / seconds / read_stream();
}

void count_operations(benchmark::State& state, double operations, double seconds) {
  state.counters["GFLOP/s"] = operations * 1e-9 / seconds;
}

}  // namespace tidal::bench
