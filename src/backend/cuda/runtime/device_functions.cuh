// Small device functions that the kernels of decode attention share.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// Waits for the kernels before this one in the stream, then lets the next one be set up. Nothing but the batch's
/// tables may be read before, and what AttendParams::early speaks of.
__device__ inline void wait_for_kernels_before() {
  wait_for_previous();
  let_next_start();
}

/// A row of the batch: what it attends to.
struct DeviceRow {
  int context;           ///< positions
  const int32_t* table;  ///< its sequence's blocks
  int position;          ///< first of its chunk: this pass writes keys and values from here on
  int budget;
};

__device__ inline DeviceRow row_of(const StepTables& tables, int row) {
  const DeviceChunk& chunk = tables.chunks[tables.row_chunk[row]];
  return {tables.positions[row] + 1, tables.blocks + chunk.table, chunk.position, chunk.budget};
}

__device__ inline float negative_infinity() { return __int_as_float(0xff800000); }
__device__ inline bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

/// cap * tanh(x / cap), Hyperparameters::score_cap's way; NaN stays.
__device__ inline float soft_capped(float x, float cap) { return __fmul_rn(cap, tanhf(__fdiv_rn(x, cap))); }

/// 2^x to two units in the last place; 0 where it is below 2^-126.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes to shared memory; zeros where not `valid`. `from` is an address in either case. kOnce: nobody else reads
/// it, so that it is the first to leave the L2.
template <bool kOnce = false>
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  if constexpr (kOnce) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(bytes), "l"(policy)
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Has 128 bytes on their way to the L2.
__device__ inline void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

struct Fragment {  ///< of the 16 x 16 operand of an mma, bf16
  uint32_t r[4];
};

/// Four 8 x 8 matrices of 16 bits, from the rows that the lanes' addresses name; transposed on the way if so asked.
template <bool kTransposed = false>
__device__ inline Fragment load_matrix(uint32_t address) {
  Fragment f;
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(address)
                 : "memory");
  }
  return f;
}

/// sums [16 x 8] += a [16 x 16] * b [16 x 8].
__device__ inline void multiply_add(float (&sums)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

/// Transposes 8 x 8 elements of 16 bits, each lane with two neighbours of a row.
__device__ inline uint32_t transpose(uint32_t value) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

/// Whether this CTA is the last of `count` to arrive at `counter`, which is 0 again then; what the others wrote before
/// is visible to it. All threads call it, with `flag` in shared memory.
__device__ inline bool arrives_last(uint32_t* counter, uint32_t count, uint32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(counter, 1u) + 1 == count;
    if (last) *counter = 0;
    *flag = last;
  }
  __syncthreads();
  const bool last = *flag;
  if (last) __threadfence();
  return last;
}

}  // namespace tidal::cuda
