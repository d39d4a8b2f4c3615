#include "backend/cuda/runtime/device.h"

#include <algorithm>

#include "backend/cuda/runtime/error.h"
#include "core/error_kinds.h"

namespace tidal::cuda {
namespace {

constexpr double kMebi = 1048576.0;
constexpr int kLeastCapability = 80;

void free_device(std::byte* data, size_t) {
  cudaDeviceSynchronize();  // a copy may still be on its way
  cudaFree(data);
}
void free_pinned(std::byte* data, size_t) { cudaFreeHost(data); }

/// Of the current device.
int attribute(cudaDeviceAttr which) {
  constexpr const char* kWhat = "asking the device for its properties";
  int device = 0, value = 0;
  check(cudaGetDevice(&device), kWhat);
  check(cudaDeviceGetAttribute(&value, which, device), kWhat);
  return value;
}

[[noreturn]] void fail_without_driver(const char* what) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  fail_as<DeviceError>("cuda: {}: {}", what, driver_problem(driver, runtime));
}

}  // namespace

std::string driver_problem(int driver, int runtime) {
  if (driver == 0) return "there is no NVIDIA driver on this machine";
  return fmt::format("the driver is too old: it is for CUDA {}.{}, expected {}.{} or later", driver / 1000,
                     driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

void fail_with(cudaError_t code, const char* what) {
  cudaGetLastError();  // so that the next check does not find this one again
  switch (code) {
    case cudaErrorNoDevice:
      fail_as<DeviceError>("cuda: {}: no device found, expected an NVIDIA GPU (CUDA_VISIBLE_DEVICES may hide it)",
                           what);
    case cudaErrorInsufficientDriver: fail_without_driver(what);
    case cudaErrorMemoryAllocation: fail_as<MemoryError>("out of memory: the device has no room for {}", what);
    case cudaErrorNoKernelImageForDevice:
      fail_as<DeviceError>("cuda: {}: this tidal was built without kernels for a device of compute capability {:.1f}",
                           what, compute_capability() / 10.0);
    // After these the context answers nothing else.
    case cudaErrorAssert:
    case cudaErrorContained:
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorNvlinkUncorrectable:
      fail_as<DeviceError>("cuda: {}: the device was lost ({}), start the program again", what,
                           cudaGetErrorString(code));
    default: fail_as<DeviceError>("cuda: {}: {}", what, cudaGetErrorString(code));
  }
}

void fail_with(const std::string& message) { throw Error(message); }

void fail_without_memory(size_t bytes, const char* what) {
  cudaGetLastError();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  fail_as<MemoryError>(
      "out of memory: cannot get {:.1f} MiB for the {}, {:.1f} of {:.1f} MiB of the device's memory are free",
      static_cast<double>(bytes) / kMebi, what, static_cast<double>(free) / kMebi, static_cast<double>(total) / kMebi);
}

void open_device() {
  constexpr const char* kWhat = "opening the device";
  int count = 0;
  check(cudaGetDeviceCount(&count), kWhat);
  if (count == 0) fail_with(cudaErrorNoDevice, kWhat);
  check(cudaSetDevice(0), kWhat);
  if (const int capability = compute_capability(); capability < kLeastCapability) {
    fail("cuda: the device has compute capability {:.1f}, expected {:.1f} or later", capability / 10.0,
         kLeastCapability / 10.0);
  }
}

std::string device_name() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "asking the device for its name");
  return properties.name;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

int compute_capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

size_t free_device_memory() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for the free memory");
  return free;
}

Buffer allocate_device(size_t bytes, const char* what) {
  void* data = nullptr;
  const size_t size = std::max<size_t>(bytes, 256);
  const cudaError_t code = cudaMalloc(&data, size);
  // A size beyond all address space is an invalid value.
  if (code == cudaErrorMemoryAllocation || code == cudaErrorInvalidValue) fail_without_memory(bytes, what);
  check(code, what);
  Buffer buffer(static_cast<std::byte*>(data), bytes, free_device);
  // The fill is on a stream of its own, which others do not wait for.
  check(cudaMemset(data, 0, size), what);
  check(cudaStreamSynchronize(cudaStreamLegacy), what);
  return buffer;
}

Buffer allocate_pinned(size_t bytes, const char* what) {
  void* data = nullptr;
  const cudaError_t code = cudaMallocHost(&data, std::max<size_t>(bytes, 64));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail_as<MemoryError>("out of memory: cannot get {:.1f} MiB of pinned host memory for the {}",
                         static_cast<double>(bytes) / kMebi, what);
  }
  check(code, what);
  return {static_cast<std::byte*>(data), bytes, free_pinned};
}

Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return Stream(stream);
}

Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return Event(event);
}

}  // namespace tidal::cuda
