#include "backend/cuda/runtime/launch.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "backend/cuda/runtime/device.h"
#include "core/error_kinds.h"

namespace tidal::cuda {
namespace {

constexpr size_t kMostDevices = 64;  // whose properties are asked for once

std::atomic<int> given_limit{0};  // of limit_shared_memory()

/// ask(current device), above 0. Every launch wants to know, and its device is not always the first.
template <typename Ask>
int of_this_device(std::array<std::atomic<int>, kMostDevices>& known, Ask&& ask) {
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  const auto index = static_cast<size_t>(device);
  if (index >= kMostDevices) return ask(device);
  int value = known[index].load(std::memory_order_relaxed);
  if (value == 0) known[index].store(value = ask(device), std::memory_order_relaxed);
  return value;
}

}  // namespace

bool overlaps_launches() {
  static std::array<std::atomic<int>, kMostDevices> known{};
  return of_this_device(known, [](int) { return compute_capability(); }) >= 90;
}

int device_shared_memory() {
  static std::array<std::atomic<int>, kMostDevices> known{};
  return of_this_device(known, [](int device) {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the device's properties");
    return bytes;
  });
}

int shared_memory_limit() {
  const int limit = given_limit.load(std::memory_order_relaxed);
  return limit > 0 ? std::min(limit, device_shared_memory()) : device_shared_memory();
}

void limit_shared_memory(int bytes) {
  given_limit.store(bytes > 0 ? std::max(bytes, kLeastSharedMemory) : 0, std::memory_order_relaxed);
}

void fail_without_shared_memory(size_t bytes, const char* what) {
  fail_as<DeviceError>("cuda: {}: needs {} bytes of shared memory a block, this device has {}", what, bytes,
                       shared_memory_limit());
}

}  // namespace tidal::cuda
