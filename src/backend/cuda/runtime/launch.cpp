#include "backend/cuda/runtime/launch.h"

#include <algorithm>
#include <atomic>

#include "backend/cuda/runtime/device.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

std::atomic<int> given_limit{0};  // of limit_shared_memory()

}  // namespace

// One device a process: asked once.
bool overlaps_launches() {
  static const bool result = compute_capability() >= 90;
  return result;
}

int device_shared_memory() {
  static const int result = [] {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "the current device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device's properties");
    return bytes;
  }();
  return result;
}

int shared_memory_limit() {
  const int limit = given_limit.load(std::memory_order_relaxed);
  return limit > 0 ? std::min(limit, device_shared_memory()) : device_shared_memory();
}

void limit_shared_memory(int bytes) {
  given_limit.store(bytes > 0 ? std::max(bytes, kLeastSharedMemory) : 0, std::memory_order_relaxed);
}

void fail_without_shared_memory(size_t bytes, const char* what) {
  fail("cuda: {}: needs {} bytes of shared memory a block, this device has {}", what, bytes, shared_memory_limit());
}

}  // namespace tidal::cuda
