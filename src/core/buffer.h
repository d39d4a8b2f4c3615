// A run of memory that a backend owns and that frees itself.
#pragma once

#include <cstddef>
#include <utility>

namespace tidal {

/// Zero-filled memory of one backend, aligned to at least 64 bytes. Move-only; freed by the backend that made it.
class Buffer {
 public:
  using Free = void (*)(std::byte* data, size_t bytes);

  Buffer() = default;
  Buffer(std::byte* data, size_t bytes, Free free) : data_(data), bytes_(bytes), free_(free) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) free_(data_, bytes_);
  }

  /// Start of the memory: an address of the backend, not always one that the host may read.
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
  }

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  Free free_ = nullptr;
};

}  // namespace tidal
