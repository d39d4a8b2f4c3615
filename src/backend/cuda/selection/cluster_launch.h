// Launching kernels whose blocks work in clusters.
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {

/// A launch in clusters, early. Grid: (blocks of a cluster, sets, rows).
struct ClusterLaunch {
  ClusterLaunch(int blocks, int sets, int rows, int threads, size_t bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(blocks, sets, rows);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;

  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
};

/// Lets a kernel have all shared memory of the device, and clusters of more than 8 blocks.
template <typename Kernel>
void allow_clusters(Kernel kernel, const char* what) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), what);
  const int left = shared_memory_limit() - static_cast<int>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, left), what);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
}

/// How many clusters of so many blocks run at the same time; 0 where the device does not run them.
template <typename Kernel>
int active_clusters(Kernel kernel, int blocks, int threads, size_t bytes) {
  if (bytes > static_cast<size_t>(shared_memory_limit())) return 0;
  const ClusterLaunch launch(blocks, 1, 1, threads, bytes, nullptr);
  int clusters = 0;
  // Not every device runs clusters of more than 8: an error is an answer.
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) clusters = 0;
  cudaGetLastError();
  return clusters;
}

}  // namespace tidal::cuda
