#include "backend/cuda/launch.h"

namespace tidal::cuda {
namespace {

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&value, which, device), "a property of the device");
  return value;
}

}  // namespace

// One device a process: asked once.
bool overlaps_launches() {
  static const bool result = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  return result;
}

int multiprocessors() {
  static const int result = attribute(cudaDevAttrMultiProcessorCount);
  return result;
}

int shared_memory_limit() {
  static const int result = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return result;
}

}  // namespace tidal::cuda
