#include "backend/cuda/runtime/driver.h"

#include <cuda_runtime_api.h>

#include "backend/cuda/runtime/error.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

/// All of these are as old as the oldest driver that can be asked for a version.
constexpr unsigned kVersion = 12000;

template <typename Function>
void find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  const cudaError_t code = cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &status);
  if (code != cudaSuccess || status != cudaDriverEntryPointSuccess || !found) {
    cudaGetLastError();
    fail("cuda: the driver has no {}, expected a later one", name);
  }
  function = reinterpret_cast<Function>(found);
}

Driver find_all() {
  Driver driver;
  find("cuDeviceGetAttribute", driver.device_attribute);
  find("cuMemGetAllocationGranularity", driver.granularity);
  find("cuMemAddressReserve", driver.reserve);
  find("cuMemAddressFree", driver.free);
  find("cuMemCreate", driver.create);
  find("cuMemRelease", driver.release);
  find("cuMemMap", driver.map);
  find("cuMemUnmap", driver.unmap);
  find("cuMemSetAccess", driver.set_access);
  return driver;
}

}  // namespace

const Driver& driver() {
  static const Driver found = find_all();
  return found;
}

void check(CUresult result, const char* what) {
  // Driver and runtime have the same numbers.
  check(static_cast<cudaError_t>(result), what);
}

}  // namespace tidal::cuda
