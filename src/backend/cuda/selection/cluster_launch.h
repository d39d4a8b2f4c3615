// Launches in clusters of blocks, and how many blocks a cluster had better have.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/selection/select.h"

namespace tidal::cuda {

/// A launch of clusters [blocks] for sets of rows, early.
struct ClusterLaunch {
  ClusterLaunch(int threads, int blocks, int sets, int rows, size_t bytes, cudaStream_t stream) {
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

/// How many clusters of `kernel` run at the same time, for every number of blocks that they may have. bytes_of(blocks):
/// shared memory of a block. Throws Error.
template <typename BytesOf>
ClusterCounts count_clusters(const void* kernel, int threads, BytesOf bytes_of) {
  constexpr const char* kWhat = "clusters of blocks";
  const int most = shared_memory_limit();
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared_memory()), kWhat);
  // Not every device runs clusters of more than 8: an error is an answer, here and below.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaGetLastError();
  ClusterCounts counts = {};
  for (int blocks = kLeastClusterBlocks; blocks <= kMostClusterBlocks; ++blocks) {
    const size_t bytes = bytes_of(blocks);
    if (bytes > static_cast<size_t>(most)) continue;
    const ClusterLaunch launch(threads, blocks, 1, 1, bytes, nullptr);
    if (cudaOccupancyMaxActiveClusters(&counts[blocks], kernel, &launch.config) != cudaSuccess) counts[blocks] = 0;
    cudaGetLastError();
  }
  return counts;
}

/// The cheapest for so many sets. active(blocks): clusters at the same time; scores(blocks): that a block pools.
template <typename Active, typename Scores>
ClusterChoice cheapest_cluster(int sets, Active active, Scores scores) {
  // What a cluster costs beside its scores, and what each of its blocks.
  constexpr int64_t kOverhead = 10000, kBlockOverhead = 400;
  ClusterChoice best;
  for (int blocks = kLeastClusterBlocks; blocks <= kMostClusterBlocks; ++blocks) {
    const int all = active(blocks);
    if (all == 0) continue;
    // Beside the blocks of other kernels, which come and go, the last eighth does not fit, but for the smallest.
    const int at_once = blocks == kLeastClusterBlocks ? all : all * 7 / 8 > 0 ? all * 7 / 8 : 1;
    const int64_t waves = (sets + at_once - 1) / at_once;
    const int64_t cost = waves * (kOverhead + kBlockOverhead * blocks + scores(blocks));
    if (best.blocks == 0 || cost < best.cost) best = {blocks, waves, cost};
  }
  return best;
}

}  // namespace tidal::cuda
