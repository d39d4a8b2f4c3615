// None of these kernels lets the next one start before it has ended: those of the engine, which are started early, read
// tables before they wait for what is before them.
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

__global__ void __launch_bounds__(kThreads) row_tables_kernel(const __grid_constant__ RowTablesArgs args) {
  const int row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= args.rows) return;
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

/// Grid (rows).
__global__ void __launch_bounds__(kThreads)
    widen_rows_kernel(const Bf16* from, int64_t stride, int width, float factor, float* to) {
  const int row = blockIdx.x;
  const auto* const own = reinterpret_cast<const uint4*>(from + stride * row);
  auto* const out = reinterpret_cast<float4*>(to + static_cast<int64_t>(width) * row);
  for (int i = threadIdx.x; i < width / kEight; i += kThreads) {
    const uint4 eight = own[i];
    const auto low = [&](uint32_t pair) { return __fmul_rn(widened(pair & 0xffffu), factor); };
    const auto high = [&](uint32_t pair) { return __fmul_rn(widened(pair >> 16), factor); };
    out[2 * i] = make_float4(low(eight.x), high(eight.x), low(eight.y), high(eight.y));
    out[2 * i + 1] = make_float4(low(eight.z), high(eight.z), low(eight.w), high(eight.w));
  }
}

/// Grid (rows).
__global__ void __launch_bounds__(kThreads) round_rows_kernel(const float* from, int width, Bf16* to, int64_t stride) {
  const int row = blockIdx.x;
  const auto* const own = reinterpret_cast<const float4*>(from + static_cast<int64_t>(width) * row);
  auto* const out = reinterpret_cast<uint4*>(to + stride * row);
  for (int i = threadIdx.x; i < width / kEight; i += kThreads) {
    const float4 a = own[2 * i], b = own[2 * i + 1];
    const auto pair = [](float low, float high) { return rounded_bits(low) | rounded_bits(high) << 16; };
    out[i] = make_uint4(pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w));
  }
}

/// Grid (sets, rows).
__global__ void __launch_bounds__(kThreads) export_sets_kernel(const __grid_constant__ ExportSetsArgs args) {
  const int64_t set = static_cast<int64_t>(blockIdx.y) * args.sets + blockIdx.x;
  const int count = args.contexts[blockIdx.y] > args.budget ? args.counts[set] : 0;
  if (threadIdx.x == 0) args.to_counts[set] = count;
  for (int i = threadIdx.x; i < count; i += kThreads)
    args.to_positions[set * args.most + i] = args.positions[set * args.room + i];
}

}  // namespace

void launch_append_rows(const AppendRowsArgs& args, cudaStream_t stream) {
  launch("keys and values", Start::After, append_rows_kernel, dim3(args.rows), dim3(kThreads), 0, stream, args);
}

void launch_row_tables(const RowTablesArgs& args, cudaStream_t stream) {
  launch("tables", Start::After, row_tables_kernel, dim3((args.rows + kThreads - 1) / kThreads), dim3(kThreads), 0,
         stream, args);
}

void launch_widen_rows(const Bf16* from, int64_t stride, int rows, int width, float factor, float* to,
                       cudaStream_t stream) {
  launch("queries", Start::After, widen_rows_kernel, dim3(rows), dim3(kThreads), 0, stream, from, stride, width, factor,
         to);
}

void launch_round_rows(const float* from, int rows, int width, Bf16* to, int64_t stride, cudaStream_t stream) {
  launch("outputs", Start::After, round_rows_kernel, dim3(rows), dim3(kThreads), 0, stream, from, width, to, stride);
}

void launch_export_sets(const ExportSetsArgs& args, cudaStream_t stream) {
  launch("sets", Start::After, export_sets_kernel, dim3(args.sets, args.rows), dim3(kThreads), 0, stream, args);
}

}  // namespace tidal::cuda
