#include "backend/cuda/runtime/read_stream.h"

#include <algorithm>
#include <cstdint>

#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kPasses = 10;
constexpr int kLoads = 8;  // of 16 bytes, in flight in a thread

__global__ void __launch_bounds__(kThreads) read_all(const uint4* data, int64_t count, uint32_t* never) {
  uint32_t seen = 0;
  const int64_t step = int64_t{kThreads} * kLoads * gridDim.x;
  for (int64_t at = int64_t{kThreads} * kLoads * blockIdx.x + threadIdx.x; at < count; at += step) {
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) values[i] = __ldcs(data + at + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) seen |= values[i].x | values[i].y | values[i].z | values[i].w;
  }
  if (seen == 1) *never = seen;  // the memory holds zeros
}

}  // namespace

double measure_read_stream(cudaStream_t stream) {
  constexpr const char* kWhat = "measuring the read stream";
  constexpr int64_t kUnit = int64_t{16} * kThreads * kLoads;
  const int64_t bytes =
      std::min<int64_t>(int64_t{1} << 31, static_cast<int64_t>(free_device_memory() / 2)) / kUnit * kUnit;
  const Buffer memory = allocate_device(static_cast<size_t>(bytes), "read stream");
  cudaEvent_t made[2];
  for (cudaEvent_t& event : made) check(cudaEventCreate(&event), kWhat);
  const Event begin(made[0]), end(made[1]);
  const int grid = 4 * multiprocessors();
  float best = 1e30f;
  for (int pass = 0; pass < kPasses; ++pass) {
    check(cudaEventRecord(begin, stream), kWhat);
    read_all<<<grid, kThreads, 0, stream>>>(memory.as<const uint4>(), bytes / 16, memory.as<uint32_t>());
    check_launch(kWhat);
    check(cudaEventRecord(end, stream), kWhat);
    check(cudaEventSynchronize(end), kWhat);
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), kWhat);
    best = std::min(best, milliseconds);
  }
  return static_cast<double>(bytes) / best * 1e-6;
}

}  // namespace tidal::cuda
