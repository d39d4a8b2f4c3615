// What the kernel benchmarks share: the machine's limits, memory that no cache holds, counters.
#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/timer.h"

namespace tidal::bench {

/// TIDAL_THREADS, else the number of processors.
int threads();
/// The read stream with threads(), GB/s, measured on first use.
double read_stream();
/// Bytes to cycle through so that every read comes from memory: twice the largest cache, at least 256 MiB.
size_t cold_bytes();
/// One CPU backend with threads() for all benchmarks.
Backend& backend();

/// Overwrites memory with finite bf16 noise in [-1, 1).
void fill_noise(Bf16* data, size_t count);
/// Floats in [-1, 1).
std::vector<float> noise(size_t count);

/// Copies of one random matrix in memory of their own, cold_bytes() together.
class Weights {
 public:
  /// Throws Error when rows of `cols` cannot be of this type.
  Weights(ggml_type type, int64_t rows, int64_t cols);
  const Weight& next() { return weights_[at_++ % weights_.size()]; }
  size_t bytes() const { return weights_[0].bytes(); }  ///< of one

 private:
  Buffer memory_;
  std::vector<Weight> weights_;
  size_t at_ = 0;
};

/// Runs the benchmark's loop; returns seconds per iteration.
template <typename Kernel>
double time_loop(benchmark::State& state, Kernel&& kernel) {
  const Timer timer;
  for (auto _ : state) kernel();
  return timer.seconds() / static_cast<double>(state.iterations());
}

/// Counters `GB/s` and `of_limit` (share of the read stream) for a kernel that must read `bytes` in `seconds`.
void count_bytes(benchmark::State& state, double bytes, double seconds);
/// Counter `GFLOP/s`.
void count_operations(benchmark::State& state, double operations, double seconds);

}  // namespace tidal::bench
