// The device, its memory, and what CUDA gives out that must be given back.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "core/buffer.h"

namespace tidal::cuda {

/// Makes the first device current. Throws Error when there is none, when the driver is too old for this program, or the
/// device older than compute capability 8.0.
void open_device();

/// What is wrong with the driver, one sentence without its end: it is not there (0), or too old. Versions as CUDA has
/// them: 1000 * major + 10 * minor.
std::string driver_problem(int driver, int runtime);

std::string device_name();
int multiprocessors();
/// 10 * major + minor, e.g. 90.
int compute_capability();
/// Bytes of device memory that are free now.
size_t free_device_memory();

/// Zero-filled device memory. `what` names it in the Error thrown when there is not enough.
Buffer allocate_device(size_t bytes, const char* what);
/// Host memory that copies to and from the device run at full speed with, and beside the host.
Buffer allocate_pinned(size_t bytes, const char* what);

/// A CUDA object that is destroyed with its owner. Move-only.
template <typename Object, cudaError_t (*kDestroy)(Object)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Object object) : object_(object) {}
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Owned() {
    if (object_) kDestroy(object_);
  }

  operator Object() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  Object object_ = nullptr;
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

/// A stream that does not wait for the legacy default stream.
Stream make_stream();
/// An event for waiting, without a time.
Event make_event();

}  // namespace tidal::cuda
