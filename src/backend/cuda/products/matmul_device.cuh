// What the skinny product is made of: copies, the tensor core, the order of sums.
//
// The tensor core multiplies 16 rows of W with up to 8 NT rows of x. The columns of W are cut into units (64 of bf16,
// 128 of quantised weights), unit u belongs to warp u mod 8; a warp adds its units in ascending order, then the 8 sums
// are added in the order of the warps. That order is all that decides a result's bits, and no variant of the kernel
// changes it.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/products/matmul_skinny.h"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda::skinny {

inline constexpr int kWarps = kRowThreads / 32;

/// A row of W as an epilogue names it.
struct RowOf {
  const std::byte* matrix;
  int row;
};

/// Lets a kernel have all the shared memory that there is.
inline cudaError_t allow_shared_memory(const void* kernel) {
  const cudaError_t code =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared_memory());
  if (code != cudaSuccess) return code;
  // As large as can be, whatever a kernel needs: a change of the division waits until the multiprocessor is idle.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
/// 16 bytes to shared memory, zeros where `inside` is false (nothing is read then).
__device__ inline void copy_16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// One step of the tensor core: rows g and g + 8 of W hold `a` and `b`, x holds `x`.
__device__ inline void multiply(float4& sum, uint32_t a0, uint32_t b0, uint32_t a1, uint32_t b1, uint32_t x0,
                                uint32_t x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
      : "r"(a0), "r"(b0), "r"(a1), "r"(b1), "r"(x0), "r"(x1));
}

/// The factors of at most 8 NT rows that were rounded before, by the 8 warps from `first_warp` on. Has no barrier.
template <int NT>
__device__ inline void load_factors(const SkinnyInput& in, int first_warp, int rows, int cols, float* factors) {
  const int thread = static_cast<int>(threadIdx.x) - first_warp * 32, warp = thread / 32;
  if (in.squares) {
    if (warp < min(rows, kWarps)) norm_factors<NT, kWarps>(in.squares, warp, rows, cols, in.epsilon, factors);
  } else if (thread < rows) {
    factors[thread] = in.factors ? __ldcg(in.factors + thread) : 1.0f;
  }
}

/// Where sum `index` of a tile lies: as the tensor core has them, but so that neither the lanes that hold them nor
/// those that have neighbouring rows meet in a bank.
__device__ inline int sum_place(int index) { return index ^ (index >> 5 & 3) << 2; }

/// Which of a tile's results an item is, by the tensor core's layout.
template <int NT>
struct Item {
  int m, row, token;
  __device__ explicit Item(int item) {
    const int in_tile = item % 128, lane = in_tile / 4;
    m = item / (128 * NT);
    row = lane / 4 + (in_tile & 2) * 4;
    token = item / 128 % NT * 8 + lane % 4 * 2 + (in_tile & 1);
  }
};

}  // namespace tidal::cuda::skinny
