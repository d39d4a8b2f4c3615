#include "backend/cuda/runtime/launch.h"

#include "backend/cuda/runtime/device.h"

namespace tidal::cuda {

// One device a process: asked once.
bool overlaps_launches() {
  static const bool result = compute_capability() >= 90;
  return result;
}

int shared_memory_limit() {
  static const int result = [] {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "the current device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device's properties");
    return bytes;
  }();
  return result;
}

}  // namespace tidal::cuda
