// A run of memory that a backend owns and that frees itself.
#pragma once

#include <cstddef>
#include <memory>

namespace tidal {

/// Zero-filled memory of one backend, aligned to at least 64 bytes. Move-only; freed by the backend that made it.
class Buffer {
 public:
  using Free = void (*)(std::byte* data, size_t bytes);

  Buffer() = default;
  Buffer(std::byte* data, size_t bytes, Free free) : data_(data, Deleter{free, bytes}) {}

  /// Start of the memory: an address of the backend, not always one that the host may read.
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t bytes() const { return data_ ? data_.get_deleter().bytes : 0; }

 private:
  struct Deleter {
    Free free = nullptr;
    size_t bytes = 0;
    void operator()(std::byte* data) const {
      if (free) free(data, bytes);
    }
  };
  std::unique_ptr<std::byte, Deleter> data_;
};

}  // namespace tidal
