// What the CUDA runtime has no functions for: physical memory and addresses apart. Found in the driver when it is first
// asked for, so that the program starts on machines without one.
#pragma once

#include <cuda.h>

#include <string>

namespace tidal::cuda {

/// Functions of the driver, cuMem... each.
struct Driver {
  decltype(&::cuDeviceGetAttribute) device_attribute = nullptr;
  decltype(&::cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&::cuMemAddressReserve) reserve = nullptr;
  decltype(&::cuMemAddressFree) free = nullptr;
  decltype(&::cuMemCreate) create = nullptr;
  decltype(&::cuMemRelease) release = nullptr;
  decltype(&::cuMemMap) map = nullptr;
  decltype(&::cuMemUnmap) unmap = nullptr;
  decltype(&::cuMemSetAccess) set_access = nullptr;
};

/// Throws Error when the driver lacks one. The device must be open.
const Driver& driver();
/// Throws Error unless `result` is success. `what` was being done.
void check(CUresult result, const char* what);

}  // namespace tidal::cuda
