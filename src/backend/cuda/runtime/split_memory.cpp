#include "backend/cuda/runtime/split_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "backend/cuda/runtime/error.h"
#include "core/available_memory.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

constexpr double kMiB = 1048576.0;
constexpr size_t kStep = size_t{64} << 20;          // of host memory that is made at once, about
constexpr size_t kAhead = size_t{1} << 30;          // and how far it is made before it is asked for
constexpr int64_t kHostSpare = int64_t{256} << 20;  // that the host keeps for others
/// CU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, which CUDA 12 has no name for.
constexpr auto kHostAttribute = static_cast<CUdevice_attribute>(145);

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

CUmemAllocationProp properties(CUmemLocationType type) {
  CUmemAllocationProp wanted{};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.location.type = type;
  wanted.location.id = 0;
  return wanted;
}

size_t granularity(CUmemLocationType type) {
  const CUmemAllocationProp wanted = properties(type);
  size_t bytes = 0;
  check(driver().granularity(&bytes, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "asking how memory is mapped");
  return bytes;
}

void allow(CUdeviceptr at, size_t bytes, CUmemLocationType where) {
  std::array<CUmemAccessDesc, 2> access{};
  access[0].location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access[0].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  access[1].location.type = where;
  access[1].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check(driver().set_access(at, bytes, access.data(), where == CU_MEM_LOCATION_TYPE_DEVICE ? 1 : 2), "mapping memory");
}

/// Maps memory of `handle`, and takes it out again where it cannot be used.
void map(CUdeviceptr at, size_t bytes, CUmemGenericAllocationHandle handle, CUmemLocationType where) {
  check(driver().map(at, bytes, 0, handle, 0), "mapping memory");
  try {
    allow(at, bytes, where);
  } catch (...) {
    driver().unmap(at, bytes);
    throw;
  }
}

/// New memory at `at`. False when there is none.
bool make(CUdeviceptr at, size_t bytes, CUmemLocationType where) {
  const CUmemAllocationProp wanted = properties(where);
  CUmemGenericAllocationHandle handle = 0;
  const CUresult result = driver().create(&handle, bytes, &wanted, 0);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return false;
  check(result, "making memory");
  try {
    map(at, bytes, handle, where);
  } catch (...) {
    driver().release(handle);
    throw;
  }
  driver().release(handle);  // it lives as long as it is mapped
  return true;
}

[[noreturn]] void fail_without_host_memory(size_t bytes) {
  fail("out of memory: cannot get {:.1f} MiB more of pinned host memory for the KV cache, {:.1f} MiB are available",
       static_cast<double>(bytes) / kMiB, static_cast<double>(available_memory()) / kMiB);
}

}  // namespace

std::string split_memory_problem() {
  try {
    int supported = 0;
    const CUresult result = driver().device_attribute(&supported, kHostAttribute, 0);
    if (result != CUDA_SUCCESS) return "the driver does not say that the device reads mapped host memory";
    return supported ? "" : "the device does not read mapped host memory";
  } catch (const Error&) {
    return "the driver cannot map memory";
  }
}

SplitKvMemory::SplitKvMemory(KvRoom wanted, const char* what) : KvMemory(std::move(wanted)) {
  if (const std::string problem = split_memory_problem(); !problem.empty()) {
    fail("cuda: K and V cannot be kept in host memory: {}", problem);
  }
  granule_ = std::max(granularity(CU_MEM_LOCATION_TYPE_DEVICE), granularity(CU_MEM_LOCATION_TYPE_HOST));
  // Where a multiple of the granule lies behind the host's slots, in all layers at once.
  size_t multiple = 1;
  for (const size_t bytes : room().slot_bytes) multiple = std::lcm(multiple, granule_ / std::gcd(granule_, bytes));
  first_staged_ = room().device_slots + static_cast<int>(round_up(static_cast<size_t>(room().host_slots()), multiple));
  try {
    for (const size_t bytes : room().slot_bytes) reserve(layers_.emplace_back(), bytes);
    for (Layer& layer : layers_) {
      const auto bytes = static_cast<size_t>(layer.host - layer.range);
      if (!make(layer.range, bytes, CU_MEM_LOCATION_TYPE_DEVICE)) fail_without_memory(bytes * layers_.size(), what);
      layer.device_bytes = bytes;
      check(cudaMemset(std::bit_cast<void*>(layer.range), 0, bytes), what);
    }
    check(cudaStreamSynchronize(cudaStreamLegacy), what);
    thread_ = std::thread([this] { run(); });
  } catch (...) {
    release();
    throw;
  }
}

SplitKvMemory::~SplitKvMemory() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  cudaDeviceSynchronize();  // a copy may still be on its way
  release();
}

void SplitKvMemory::reserve(Layer& layer, size_t slot_bytes) {
  const size_t device = round_up(static_cast<size_t>(room().device_slots) * slot_bytes, granule_);
  const size_t host = static_cast<size_t>(first_staged_ - room().device_slots) * slot_bytes;
  const size_t staging = round_up(static_cast<size_t>(room().host_slots()) * slot_bytes, granule_);
  layer.range_bytes = device + host + staging;
  check(driver().reserve(&layer.range, layer.range_bytes, granule_, 0, 0), "reserving addresses");
  layer.host = layer.range + device;
  layer.staging = layer.host + host;
  layer.data = std::bit_cast<std::byte*>(layer.host - static_cast<size_t>(room().device_slots) * slot_bytes);
}

void SplitKvMemory::provide(int count) {
  std::unique_lock lock(mutex_);
  const size_t slot = std::accumulate(room().slot_bytes.begin(), room().slot_bytes.end(), size_t{0});
  const auto ahead = static_cast<int>(kAhead / std::max<size_t>(slot, 1));
  if (const int wanted = std::min(room().host_slots(), count + ahead); count > 0 && wanted > wanted_) {
    wanted_ = wanted;
    changed_.notify_all();
  }
  if (count <= there_) return;
  error_ = nullptr;  // there may be memory by now
  needed_ = count;
  changed_.notify_all();
  changed_.wait(lock, [&] { return there_ >= count || error_; });
  if (there_ < count) std::rethrow_exception(error_);
}

void SplitKvMemory::run() {
  cudaSetDevice(0);
  const size_t slot = std::accumulate(room().slot_bytes.begin(), room().slot_bytes.end(), size_t{0});
  const int step = std::max(1, static_cast<int>(kStep / std::max<size_t>(slot, 1)));
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || (there_ < wanted_ && !error_); });
    if (stop_) return;
    int next = std::min(room().host_slots(), there_ + step);
    const int least = needed_ > there_ ? std::min(needed_, next) : next;
    lock.unlock();
    std::exception_ptr error = try_host(next);
    if (error && least < next) {  // there may be as much as somebody waits for
      next = least;
      error = try_host(next);
    }
    lock.lock();
    if (error) {
      error_ = error;
    } else {
      there_ = next;
    }
    changed_.notify_all();
  }
}

std::exception_ptr SplitKvMemory::try_host(int count) {
  try {
    make_host(count);
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

void SplitKvMemory::make_host(int count) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    const size_t needed = round_up(static_cast<size_t>(count) * room().slot_bytes[l], granule_);
    if (needed <= layer.host_bytes) continue;
    const size_t more = needed - layer.host_bytes;
    const bool spare = available_memory() >= static_cast<int64_t>(more) + kHostSpare;
    if (!spare || !make(layer.host + layer.host_bytes, more, CU_MEM_LOCATION_TYPE_HOST)) fail_without_host_memory(more);
    pieces_.emplace_back(layer.host + layer.host_bytes, more);
    layer.host_bytes = needed;
  }
}

size_t SplitKvMemory::staging_bytes(int slots) const {
  const size_t largest = *std::max_element(room().slot_bytes.begin(), room().slot_bytes.end());
  return round_up(static_cast<size_t>(slots) * largest, granule_);
}

bool SplitKvMemory::stage(int slots, int buffers) {
  unstage();
  try {
    if (make_staging(slots, buffers)) return true;
  } catch (...) {
    unstage();  // not half of the layers
    throw;
  }
  unstage();
  return false;
}

bool SplitKvMemory::make_staging(int slots, int buffers) {
  const CUmemAllocationProp wanted = properties(CU_MEM_LOCATION_TYPE_DEVICE);
  for (int b = 0; b < buffers; ++b) {
    CUmemGenericAllocationHandle handle = 0;
    const CUresult result = driver().create(&handle, staging_bytes(slots), &wanted, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return false;
    check(result, "making memory");
    staging_.push_back(handle);
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    const size_t bytes = round_up(static_cast<size_t>(slots) * room().slot_bytes[l], granule_);
    const auto buffer = static_cast<size_t>(buffer_of(static_cast<int>(l)));
    map(layers_[l].staging, bytes, staging_[buffer], CU_MEM_LOCATION_TYPE_DEVICE);
    layers_[l].staging_bytes = bytes;
  }
  staged_slots_ = slots;
  return true;
}

void SplitKvMemory::unstage() {
  for (Layer& layer : layers_) {
    if (layer.staging_bytes > 0) driver().unmap(layer.staging, std::exchange(layer.staging_bytes, 0));
  }
  for (const CUmemGenericAllocationHandle buffer : staging_) driver().release(buffer);
  staging_.clear();
  staged_slots_ = 0;
}

int SplitKvMemory::index_of(const std::byte* data) const {
  const auto found = std::find_if(layers_.begin(), layers_.end(), [&](const Layer& l) { return l.data == data; });
  return found == layers_.end() ? -1 : static_cast<int>(found - layers_.begin());
}

void SplitKvMemory::release() {
  unstage();
  for (const auto& [at, bytes] : pieces_) driver().unmap(at, bytes);
  pieces_.clear();
  for (const Layer& layer : layers_) {
    if (layer.device_bytes > 0) driver().unmap(layer.range, layer.device_bytes);
    if (layer.range_bytes > 0) driver().free(layer.range, layer.range_bytes);
  }
  layers_.clear();
}

}  // namespace tidal::cuda
