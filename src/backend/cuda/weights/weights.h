// Weights in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "backend/weights.h"

namespace tidal::cuda {

/// Owns what upload() makes, until it ends.
class DeviceWeights {
 public:
  DeviceWeights();
  ~DeviceWeights();
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  /// A matrix of any type becomes bf16 (rounded to nearest even), a vector (one row of float32) stays as it is. Every
  /// call makes a weight of its own. The host memory is free when it returns; the weight is there for all that `user`
  /// does from then on. Throws Error: out of memory, or columns that are no multiple of 8.
  Weight upload(const Weight& host, cudaStream_t user);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::cuda
