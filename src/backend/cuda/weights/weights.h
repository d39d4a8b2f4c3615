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
  /// `quantised`: types that have a layout for it stay quantised (stays_quantised()).
  explicit DeviceWeights(bool quantised);
  ~DeviceWeights();
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  /// The type that upload() makes of a matrix of `type`.
  ggml_type matrix_type(ggml_type type) const;
  /// The bytes that it takes for one.
  int64_t matrix_bytes(ggml_type type, int64_t rows, int64_t cols) const;
  /// A matrix stays quantised, without rounding, or becomes bf16 (rounded to nearest even; so does one with a scale of
  /// its own), a vector (one row of float32) stays as it is. Every call makes a weight of its own. The host memory is
  /// free when it returns; the weight is there for all that `user` does from then on. Throws Error: out of memory, or
  /// columns that are no multiple of 8.
  Weight upload(const Weight& host, cudaStream_t user);
  /// The same as float32, whatever it is.
  Weight upload_floats(const Weight& host, cudaStream_t user);

 private:
  struct State;
  bool quantised_;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::cuda
