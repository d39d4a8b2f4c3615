// Matrices in bf16 for the skinny product (matmul_skinny.cuh): units of 64 columns.
#pragma once

#include "backend/cuda/products/matmul_device.cuh"

namespace tidal::cuda::skinny {

/// Each lane copies and reads its own 16 bytes at column t * 8 and 32 further of rows g and g + 8. The instruction has
/// other columns there, but the same for W and x.
struct Bf16Units {
  static constexpr int kUnit = 64, kPieces = 2, kSlot = 128 * 16;  // [4 pieces][lane] 16 bytes
  static constexpr bool kShared = false, kPacked = false, kOne = false;
  static constexpr int kGroups = 1;
  static constexpr int kBlocks = 2;  // a multiprocessor, as far as registers go: at one row

  /// Bytes of a row of x in shared memory: two rows are half a bank cycle apart.
  __host__ __device__ static int x_row(int units) { return units * kUnit * 2 + 64; }
  template <int NT>
  static constexpr int kXSlot = NT* kPieces * 32 * 16;  // [NT][pieces][lane] 16 bytes

  struct Aim {
    const __nv_bfloat16 *low, *high;  // rows g and g + 8
    template <class Params, class Row>
    __device__ void at(const Params& p, Row&& row, int lane, int) {
      const int g = lane / 4, cols = p.cols;
      const RowOf first = row(g), second = row(g + 8);
      low = reinterpret_cast<const __nv_bfloat16*>(first.matrix) + static_cast<int64_t>(first.row) * cols;
      high = reinterpret_cast<const __nv_bfloat16*>(second.matrix) + static_cast<int64_t>(second.row) * cols;
    }
  };

  __device__ static void copy(char* slot, const Aim& aim, int unit, int cols, int lane) {
    const int col = unit * kUnit + lane % 4 * 8;
    const bool first = col < cols, second = col + 32 < cols;
    uint4* to = reinterpret_cast<uint4*>(slot) + lane;
    copy_16(to, first ? aim.low + col : aim.low, first);
    copy_16(to + 32, second ? aim.low + col + 32 : aim.low, second);
    copy_16(to + 64, first ? aim.high + col : aim.high, first);
    copy_16(to + 96, second ? aim.high + col + 32 : aim.high, second);
  }
  /// A lane's pieces of a row of x, from column `col` on, to every 32nd of `to`.
  __device__ static void copy_x(uint4* to, const __nv_bfloat16* row, int col, int t, int cols, bool live) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int at = col + i * 32 + t * 8;
      copy_16(to + i * 32, at < cols ? row + at : row, live && at < cols);
    }
  }
  __device__ static void read_x(uint4 (&x)[kPieces], const char* unit, int t) {
    const auto* from = reinterpret_cast<const uint4*>(unit) + t;
    x[0] = from[0];
    x[1] = from[4];
  }
  /// Stores four columns of a row of x, i-th of them, where they are inside.
  __device__ static void put_four(char* row, int i, int, float4 v, bool inside) {
    if (!inside) return;
    auto* to = reinterpret_cast<__nv_bfloat162*>(row) + 2 * i;
    to[0] = __floats2bfloat162_rn(v.x, v.y);
    to[1] = __floats2bfloat162_rn(v.z, v.w);
  }
  /// Has rows that were rounded before copied to shared memory, zeros behind their ends as in W. A warp takes every
  /// 8th.
  __device__ static void load_rows(const SkinnyInput& in, int rows, int cols, int units, char* xs) {
    for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
      const __nv_bfloat16* from = in.rounded + static_cast<int64_t>(row) * cols;
#pragma unroll 8
      for (int col = threadIdx.x % 32 * 8; col < units * kUnit; col += 256) {
        copy_16(xs + row * x_row(units) + col * 2, col < cols ? from + col : from, col < cols);
      }
    }
  }

  template <int NT>
  __device__ static void multiply(float4 (&sums)[NT], const char* slot, int lane, const uint4 (&x)[NT][kPieces]) {
    const uint4* at = reinterpret_cast<const uint4*>(slot) + lane;
    const uint4 low[2] = {at[0], at[32]}, high[2] = {at[64], at[96]};
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 a = low[half], b = high[half];
        skinny::multiply(sums[n], a.x, b.x, a.y, b.y, x[n][half].x, x[n][half].y);
        skinny::multiply(sums[n], a.z, b.z, a.w, b.w, x[n][half].z, x[n][half].w);
      }
    }
  }
};

}  // namespace tidal::cuda::skinny
