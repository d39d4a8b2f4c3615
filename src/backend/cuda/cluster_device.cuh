// Clusters of thread blocks (compute capability 9.0 and above): blocks that run at the same time and read each other's
// shared memory. Elsewhere a block is alone.
#pragma once

#include <cstdint>

#include "backend/cuda/attend_device.cuh"

namespace tidal::cuda {

/// Says that this thread has come to a barrier of its cluster: what it wrote before can be read behind it.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

/// Waits until all threads of the cluster have come there that have not ended.
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

__device__ inline void synchronise_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}

/// What lies in the shared memory of block `rank` of the cluster where `own` is in this block's.
__device__ inline uint32_t load_of_cluster(const uint32_t* own, int rank) {
  uint32_t value = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
#endif
  return value;
}

__device__ inline unsigned long long load_of_cluster(const unsigned long long* own, int rank) {
  unsigned long long value = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
#endif
  return value;
}

}  // namespace tidal::cuda
