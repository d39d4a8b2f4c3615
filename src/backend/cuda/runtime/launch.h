// Launching kernels one behind the other with programmatic dependence: a kernel may start while the one before still
// runs, does what depends on nothing (weights), and then waits for it.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/shared_memory.h"

namespace tidal::cuda {

/// Whether the current device lets kernels overlap this way (compute capability 9.0 and above).
bool overlaps_launches();
enum class Start {
  Early,  ///< before the previous kernel has ended: the kernel must call wait_for_previous()
  After,  ///< when everything before on the stream is done
};

template <typename... Parameters, typename... Arguments>
void launch(const char* what, Start start, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  if (shared_bytes > static_cast<size_t>(shared_memory_limit())) fail_without_shared_memory(shared_bytes, what);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = start == Start::Early && overlaps_launches() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), what);
}

#ifdef __CUDACC__
/// Lets the next kernel start. Every thread may call it; it says nothing about memory.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Returns when all kernels before have ended and what they wrote can be read. A kernel that was started early must
/// call it, even if it has nothing to read: the ones behind rely on it.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

}  // namespace tidal::cuda
