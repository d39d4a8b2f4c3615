#include "backend/cuda/products/packed_rows.cuh"

#include "backend/cuda/products/matmul_quantised.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace skinny {
namespace {

/// A warp packs a unit; the grid is (units in groups of kPackingWarps, rows).
__global__ void __launch_bounds__(kPackingWarps * 32)
    pack_kernel(const __nv_bfloat16* from, int cols, int units, char* to) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, unit = blockIdx.x * kPackingWarps + threadIdx.x / 32;
  if (unit >= units) return;
  float x[4];
  read_four(from + static_cast<int64_t>(blockIdx.y) * cols, unit * 128 + 4 * lane, cols, x);
  pack_unit(PackedPlace(to, static_cast<int>(blockIdx.y), unit, units), x, lane);
}

}  // namespace

const std::byte* launch_pack(const SkinnyInput& in, int rows, int cols, cudaStream_t stream) {
  if (!in.scratch) fail_with("cuda backend: rows are to be packed without room for it");
  const int units = packed_units(cols);
  launch("packing rows", Start::Early, pack_kernel, dim3((units + kPackingWarps - 1) / kPackingWarps, rows),
         dim3(kPackingWarps * 32), 0, stream, in.rounded, cols, units, reinterpret_cast<char*>(in.scratch));
  return in.scratch;
}

bool small_takes_floats(int cols) {
  constexpr int kPadding = 96;  // of a row of x, the most
  return kSmallFixed + packed_units(cols) * kPackedUnit + kPadding <= shared_memory_limit();
}

}  // namespace skinny

int64_t skinny_packed_bytes(int rows, int cols) {
  const int64_t blocks = (rows + skinny::kPackedRows - 1) / skinny::kPackedRows;
  return blocks * skinny::packed_units(cols) * skinny::kPackedBlock;
}

}  // namespace tidal::cuda
