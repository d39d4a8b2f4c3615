// Errors of the CUDA runtime as sentences.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

namespace tidal::cuda {

/// Throws tidal::Error: one sentence about `code` with what was being done, e.g. "the KV cache". Of no device, a driver
/// that is too old, too little memory and a lost device it says what to do. Clears the error where CUDA lets it.
[[noreturn]] void fail_with(cudaError_t code, const char* what);
/// The same for memory of `bytes` that could not be had: says how much is free.
[[noreturn]] void fail_without_memory(size_t bytes, const char* what);

/// Throws tidal::Error with this message: core/error.h speaks {fmt}, which nvcc does not compile, so .cu files use
/// this.
[[noreturn]] void fail_with(const std::string& message);

/// Throws unless `code` is success. `what` was being done, for the message.
inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) fail_with(code, what);
}
/// After a kernel launch (`<<<>>>` returns no code): throws when it could not start. `what` names the kernel.
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

}  // namespace tidal::cuda
