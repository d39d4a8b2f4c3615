// Small kernels before and after the engine's, which hide their starts: each is set up while the one before still runs.
// Not so the engine's behind that which writes the tables (AttendParams::fresh_tables).
#include "attention/cuda_rows.h"

#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kEight = 8;  // elements of 16 bytes

__device__ inline float widened(uint32_t half) { return __uint_as_float(half << 16); }

/// As to_bf16() of core/bf16.h.
__device__ inline uint32_t rounded_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

/// Grid (rows); 16 bytes a thread and turn.
__global__ void __launch_bounds__(kThreads) append_rows_kernel(const __grid_constant__ AppendRowsArgs args) {
  const int row = blockIdx.x;
  let_next_start();  // sketches, of which nothing but the slots is read before this kernel has ended
  const int64_t slot = args.slots[row];
  if (slot < 0) return;
  const int dim = args.kv.head_dim, units = dim / kEight, width = args.kv.kv_heads * units;
  const int64_t tile = slot / kBlockTokens * args.kv.kv_heads, stride = args.kv.tile_stride;
  const auto* const key = reinterpret_cast<const uint4*>(args.key + args.key_stride * row);
  const auto* const value = reinterpret_cast<const uint4*>(args.value + args.value_stride * row);
  const int64_t place = slot % kBlockTokens * 4 * dim;  // bytes
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int head = i / units, unit = i % units;
    auto* const to = reinterpret_cast<uint4*>(args.kv.data + (tile + head) * stride + place);
    to[unit] = key[i];
    to[units + unit] = value[i];
  }
}

__device__ inline void write_tables(const PrepareRowsArgs& args, int row) {
  const int context = max(args.contexts[row], 1);
  DeviceChunk chunk;
  chunk.state = nullptr;
  chunk.first_row = row;
  chunk.rows = 1;
  chunk.position = context - 1;
  chunk.cached = context;
  chunk.table = row * args.table_stride;
  chunk.budget = args.budget;
  chunk.sinks = chunk.recent = 0;
  chunk.top_p = 1;
  args.chunks[row] = chunk;
  args.row_chunk[row] = row;
  args.positions[row] = context - 1;
}

/// Grid (rows, eights of a row / kThreads).
__global__ void __launch_bounds__(kThreads) prepare_rows_kernel(const __grid_constant__ PrepareRowsArgs args) {
  wait_for_previous();
  const int row = blockIdx.x, i = blockIdx.y * kThreads + threadIdx.x;
  if (i == 0) write_tables(args, row);
  if (i >= args.width / kEight) return;
  const uint4 eight = reinterpret_cast<const uint4*>(args.q + args.q_stride * row)[i];
  auto* const out = reinterpret_cast<float4*>(args.to + static_cast<int64_t>(args.width) * row);
  const auto low = [&](uint32_t pair) { return __fmul_rn(widened(pair & 0xffffu), args.factor); };
  const auto high = [&](uint32_t pair) { return __fmul_rn(widened(pair >> 16), args.factor); };
  out[2 * i] = make_float4(low(eight.x), high(eight.x), low(eight.y), high(eight.y));
  out[2 * i + 1] = make_float4(low(eight.z), high(eight.z), low(eight.w), high(eight.w));
}

/// Grid (rows, eights of a row / kThreads).
__global__ void __launch_bounds__(kThreads) round_rows_kernel(const float* from, int width, Bf16* to, int64_t stride) {
  wait_for_previous();
  const int row = blockIdx.x, i = blockIdx.y * kThreads + threadIdx.x;
  if (i >= width / kEight) return;
  const auto* const own = reinterpret_cast<const float4*>(from + static_cast<int64_t>(width) * row);
  const float4 a = own[2 * i], b = own[2 * i + 1];
  const auto pair = [](float low, float high) { return rounded_bits(low) | rounded_bits(high) << 16; };
  reinterpret_cast<uint4*>(to + stride * row)[i] =
      make_uint4(pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w));
}

/// Grid (rows, sets): there may be more rows than a grid is high.
__global__ void __launch_bounds__(kThreads) export_sets_kernel(const __grid_constant__ ExportSetsArgs args) {
  const int64_t set = static_cast<int64_t>(blockIdx.x) * args.sets + blockIdx.y;
  const int count = args.contexts[blockIdx.x] > args.budget ? args.counts[set] : 0;
  if (threadIdx.x == 0) args.to_counts[set] = count;
  for (int i = threadIdx.x; i < count; i += kThreads)
    args.to_positions[set * args.most + i] = args.positions[set * args.room + i];
}

dim3 grid_of(int rows, int width) { return dim3(rows, (width / kEight + kThreads - 1) / kThreads); }

}  // namespace

void launch_append_rows(const AppendRowsArgs& args, cudaStream_t stream) {
  launch("keys and values", Start::After, append_rows_kernel, dim3(args.rows), dim3(kThreads), 0, stream, args);
}

void launch_prepare_rows(const PrepareRowsArgs& args, cudaStream_t stream) {
  launch("queries", Start::Early, prepare_rows_kernel, grid_of(args.rows, args.width), dim3(kThreads), 0, stream, args);
}

void launch_round_rows(const float* from, int rows, int width, Bf16* to, int64_t stride, cudaStream_t stream) {
  launch("outputs", Start::Early, round_rows_kernel, grid_of(rows, width), dim3(kThreads), 0, stream, from, width, to,
         stride);
}

void launch_export_sets(const ExportSetsArgs& args, cudaStream_t stream) {
  launch("sets", Start::After, export_sets_kernel, dim3(args.rows, args.sets), dim3(kThreads), 0, stream, args);
}

}  // namespace tidal::cuda
