// The machine's read bandwidth: the limit that decoding is held against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tidal {

/// Reads a buffer far larger than any cache with `threads` threads, as fast as plain loads go.
class ReadStream {
 public:
  static constexpr size_t kDefaultBytes = size_t{1} << 30;  ///< well above the 480 MB cache of a large server

  /// Throws Error for threads < 1. Takes `bytes` of memory, or the largest half of it that can be had.
  explicit ReadStream(int threads, size_t bytes = kDefaultBytes);

  /// Best of `passes` passes over the whole buffer, in GB/s (1e9 bytes a second).
  double measure(int passes = 5) const;
  size_t bytes() const { return words_ * sizeof(uint64_t); }

 private:
  int threads_;
  size_t words_ = 0;
  std::unique_ptr<uint64_t[]> data_;
};

}  // namespace tidal
