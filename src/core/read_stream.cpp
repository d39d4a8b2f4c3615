#include "core/read_stream.h"

#include <algorithm>
#include <new>

#include "core/error.h"
#include "core/timer.h"

namespace tidal {
namespace {

constexpr size_t kSlice = 8 * 64;              // words that one step of the inner loop adds: 64 cache lines
constexpr size_t kSmallest = size_t{1} << 20;  // bytes; below this a measurement means nothing

// 64 independent sums, so that the loads and not the additions are what the loop waits for.
[[gnu::always_inline]] inline uint64_t sum_words(const uint64_t* data, size_t words) {
  uint64_t lanes[64] = {};
  for (size_t i = 0; i + 64 <= words; i += 64) {
    for (size_t j = 0; j < 64; ++j) lanes[j] += data[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t lane : lanes) total += lane;
  return total;
}

using Sum = uint64_t (*)(const uint64_t*, size_t);

uint64_t sum_plain(const uint64_t* data, size_t words) { return sum_words(data, words); }

// Wide loads reach about a fifth more than SSE does; the attributes let one build use what the machine has.
#if defined(__x86_64__)
[[gnu::target("avx2")]] uint64_t sum_avx2(const uint64_t* data, size_t words) { return sum_words(data, words); }
[[gnu::target("avx512f")]] uint64_t sum_avx512(const uint64_t* data, size_t words) { return sum_words(data, words); }

Sum widest_sum() {
  if (__builtin_cpu_supports("avx512f")) return sum_avx512;
  return __builtin_cpu_supports("avx2") ? sum_avx2 : sum_plain;
}
#else
Sum widest_sum() { return sum_plain; }
#endif

}  // namespace

ReadStream::ReadStream(int threads, size_t bytes) : threads_(threads) {
  if (threads < 1) fail("read stream: threads must be at least 1, got {}", threads);
  for (; bytes >= kSmallest && !data_; bytes /= 2) {
    words_ = bytes / sizeof(uint64_t) / kSlice * kSlice;
    data_.reset(new (std::nothrow) uint64_t[words_]);
  }
  if (!data_) fail("read stream: not even {} bytes of memory are free", kSmallest);
  // Pages must exist and differ: untouched ones all map to one page of zeros, which sits in the cache.
  const auto slices = static_cast<int64_t>(words_ / kSlice);
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int64_t s = 0; s < slices; ++s) {
    std::fill_n(data_.get() + static_cast<size_t>(s) * kSlice, kSlice, static_cast<uint64_t>(s));
  }
}

double ReadStream::measure(int passes) const {
  const Sum sum = widest_sum();
  double best = 0;
  uint64_t total = 0;
  for (int pass = 0; pass < std::max(passes, 1); ++pass) {
    const Timer timer;
#pragma omp parallel for schedule(static) num_threads(threads_) reduction(+ : total)
    for (int part = 0; part < threads_; ++part) {
      const size_t slices = words_ / kSlice;
      const size_t first = slices * part / threads_ * kSlice;
      const size_t last = slices * (part + 1) / threads_ * kSlice;
      total += sum(data_.get() + first, last - first);
    }
    best = std::max(best, static_cast<double>(bytes()) / timer.seconds());
  }
  [[maybe_unused]] static volatile uint64_t sink;
  sink = total;
  return best * 1e-9;
}

}  // namespace tidal
