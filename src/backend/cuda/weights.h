// Weights in device memory.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/weights.h"

namespace tidal::cuda {

/// Owns what upload() makes.
class DeviceWeights {
 public:
  DeviceWeights();
  ~DeviceWeights();
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  /// Bytes that upload() takes of device memory for a weight.
  static int64_t device_bytes(const Weight& host);
  /// A matrix of any type becomes bf16 (rounded to nearest even), a vector (one row of float32) stays as it is. The
  /// host memory is free afterwards. Synchronises. Throws Error: out of memory, or columns that are no multiple of 8.
  Weight upload(const Weight& host);
  /// Bytes taken so far.
  int64_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::cuda
