// What positions add to the output of a completion, in parts, and the output. A part has a range of full blocks, for
// their means, and a range of the estimated tier, for what these differ from the means by, or for their own values.
#include "backend/cuda/completion/complete_args.h"
#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/selection/warp_sums.cuh"
#include "backend/sketch.h"

namespace tidal::cuda {
namespace {

constexpr int kPartThreads = 256;
constexpr int kPartWarps = kPartThreads / 32;
constexpr int kPartBlocks = 32;  // whose coefficients are in shared memory
constexpr int kPartHeads = 4;    // of a thread

/// The first place in an ascending list whose position is not below `position`.
__device__ int place_of(const int32_t* list, int count, int position) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (list[middle] < position) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

struct Part {
  int kv_head, group, full, entries, split;
  int first_block, end_block, first_entry, end_entry;
  int64_t first_head;
  const int32_t *table, *list;
  const Source* sources;
};

/// By what the mean of a block counts in a head: a whole warp.
__device__ float coefficient(const CompleteArgs& args, const Part& part, int block, int h) {
  const int lane = threadIdx.x % 32;
  const int64_t head = part.first_head + h;
  const float* const scores = args.scores + head * args.score_stride + block * kBlockTokens;
  const float* const weights = args.weights + head * args.room;
  const float reference = args.references[head];
  float sum = 0, estimated = 0;
#pragma unroll
  for (int i = 0; i < kBlockTokens; i += 32) {
    sum = __fadd_rn(sum, power_of_two(__fmul_rn(__fsub_rn(scores[i + lane], reference), args.scale)));
  }
  const int begin = place_of(part.list, part.entries, block * kBlockTokens);
  for (int i = begin + lane; i < part.entries && part.list[i] < (block + 1) * kBlockTokens; i += 32) {
    if (part.sources[i] != Source::Selected) estimated = __fadd_rn(estimated, weights[i]);
  }
  return sum_over_warp(__fmaf_rn(kShareOfMeans, sum, estimated));
}

/// Adds to the sums of a thread's heads what an entry of the estimated tier does, beside its block's mean.
__device__ void add_entry(const CompleteArgs& args, const Part& part, int i, int d, int h, float (&sums)[kPartHeads]) {
  const int p = part.list[i];
  const int64_t index = static_cast<int64_t>(part.table[p / kBlockTokens]) * args.kv_heads + part.kv_head;
  float value;
  if (part.sources[i] == Source::Selected) {
    value = value_at(args.row, args.kv + index * args.tile_stride + p % kBlockTokens * args.row_bytes, d);
  } else {
    const std::byte* const sketch = args.value_sketches + index * args.places.bytes;
    const int byte = static_cast<int>(sketch[args.places.byte(p % kBlockTokens, d)]);
    const float code = __fsub_rn(static_cast<float>(byte >> args.places.shift(d) & 3), 1.5f);
    value = __fmul_rn(bf16_at(sketch + args.places.scales, p % kBlockTokens), code);
  }
#pragma unroll
  for (int j = 0; j < kPartHeads; ++j) {
    if (h + j < part.group) {
      sums[j] = __fmaf_rn(args.weights[(part.first_head + h + j) * args.room + i], value, sums[j]);
    }
  }
}

/// Adds up what the part has, for one channel and some heads; of blocks those whose coefficients are there.
__device__ void add_part(const CompleteArgs& args, const Part& part, const float* coefficients, int begin, int end,
                         bool first) {
  const int tiles = (part.group + kPartHeads - 1) / kPartHeads;
  for (int task = threadIdx.x; task < tiles * args.head_dim; task += kPartThreads) {
    const int d = task % args.head_dim, h = task / args.head_dim * kPartHeads;
    float* const out = args.parts + ((part.first_head + h) * args.splits + part.split) * args.head_dim + d;
    const int64_t stride = static_cast<int64_t>(args.splits) * args.head_dim;
    float sums[kPartHeads] = {};
#pragma unroll
    for (int j = 0; j < kPartHeads; ++j) {
      if (!first && h + j < part.group) sums[j] = out[j * stride];
    }
#pragma unroll 8
    for (int b = begin; b < end; ++b) {
      const int64_t index = static_cast<int64_t>(part.table[b]) * args.kv_heads + part.kv_head;
      const float mean = bf16_at(args.value_sketches + index * args.places.bytes, d);
#pragma unroll
      for (int j = 0; j < kPartHeads; ++j) {
        if (h + j < part.group) sums[j] = __fmaf_rn(coefficients[(b - begin) * part.group + h + j], mean, sums[j]);
      }
    }
    if (first) {
#pragma unroll 4
      for (int i = part.first_entry; i < part.end_entry; ++i) add_entry(args, part, i, d, h, sums);
    }
#pragma unroll
    for (int j = 0; j < kPartHeads; ++j) {
      if (h + j < part.group) out[j * stride] = sums[j];
    }
  }
}

__device__ Part part_of(const CompleteArgs& args) {
  const int run_row = blockIdx.z, row = args.first_row + run_row;
  const DeviceRow of = row_of(args.tables, row);
  Part part;
  part.split = blockIdx.x;
  part.kv_head = blockIdx.y;
  part.group = args.heads / args.kv_heads;
  part.first_head = static_cast<int64_t>(run_row) * args.heads + part.kv_head * part.group;
  part.full = of.context / kBlockTokens;
  part.table = of.table;
  const int64_t budget = min(static_cast<int64_t>(of.budget) * args.completion.estimated, int64_t{of.context});
  const int64_t set = static_cast<int64_t>(run_row) * args.kv_heads + part.kv_head;
  part.list = args.lists + static_cast<int64_t>(args.row_lists) * run_row + (budget + kBlockTokens - 1) * part.kv_head;
  part.entries = args.list_counts[set];
  part.sources = args.sources + set * args.room;
  const int blocks = (part.full + args.splits - 1) / args.splits,
            entries = (part.entries + args.splits - 1) / args.splits;
  part.first_block = min(part.full, part.split * blocks);
  part.end_block = min(part.full, part.first_block + blocks);
  part.first_entry = min(part.entries, part.split * entries);
  part.end_entry = min(part.entries, part.first_entry + entries);
  return part;
}

/// Grid (splits, KV heads, rows); shared memory: [kPartBlocks + 1, group] floats.
__global__ void __launch_bounds__(kPartThreads) parts_kernel(const __grid_constant__ CompleteArgs args) {
  extern __shared__ float coefficients[];
  wait_for_kernels_before();
  const Part part = part_of(args);
  float* const sums = coefficients + kPartBlocks * part.group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int h = warp; h < part.group; h += kPartWarps) {
    float sum = 0;
    for (int i = part.first_entry + lane; i < part.end_entry; i += 32) {
      if (part.sources[i] == Source::Selected)
        sum = __fadd_rn(sum, args.weights[(part.first_head + h) * args.room + i]);
    }
    sum = sum_over_warp(sum);
    if (lane == 0) sums[h] = sum;
  }
  bool first = true;
  for (int begin = part.first_block; first || begin < part.end_block; begin += kPartBlocks, first = false) {
    const int end = min(part.end_block, begin + kPartBlocks);
    __syncthreads();
    for (int task = warp; task < (end - begin) * part.group; task += kPartWarps) {
      const float own = coefficient(args, part, begin + task / part.group, task % part.group);
      if (lane == 0) coefficients[task] = own;
    }
    __syncthreads();
    for (int h = threadIdx.x; h < part.group; h += kPartThreads) {
      for (int b = 0; b < end - begin; ++b) sums[h] = __fadd_rn(sums[h], coefficients[b * part.group + h]);
    }
    add_part(args, part, coefficients, begin, end, first);
  }
  __syncthreads();
  for (int h = threadIdx.x; h < part.group; h += kPartThreads) {
    args.part_sums[(part.first_head + h) * args.splits + part.split] = sums[h];
  }
}

/// Grid (heads, rows).
__global__ void __launch_bounds__(128) combine_kernel(const __grid_constant__ CompleteArgs args) {
  wait_for_kernels_before();
  const int h = blockIdx.x, run_row = blockIdx.y, row = args.first_row + run_row;
  const int64_t head = static_cast<int64_t>(run_row) * args.heads + h;
  float total = 0;
#pragma unroll 8
  for (int s = 0; s < args.splits; ++s) total = __fadd_rn(total, args.part_sums[head * args.splits + s]);
  if (args.sink_logits) {
    const float reference = __fmul_rn(args.references[head], args.scale);
    total = __fadd_rn(total, power_of_two(__fmaf_rn(args.sink_logits[h], kLog2e, -reference)));
  }
  const float by = __fdiv_rn(1.0f, total);
  for (int d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
    const float* const parts = args.parts + head * args.splits * args.head_dim + d;
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < args.splits; ++s) sum = __fadd_rn(sum, parts[static_cast<int64_t>(s) * args.head_dim]);
    args.out[(static_cast<int64_t>(row) * args.heads + h) * args.head_dim + d] = __fmul_rn(sum, by);
  }
}

}  // namespace

void launch_parts(const CompleteArgs& args, cudaStream_t stream) {
  launch("parts of a completion", Start::Early, parts_kernel, dim3(args.splits, args.kv_heads, args.run),
         dim3(kPartThreads), sizeof(float) * (kPartBlocks + 1) * (args.heads / args.kv_heads), stream, args);
}

void launch_combine(const CompleteArgs& args, cudaStream_t stream) {
  launch("completed attention", Start::Early, combine_kernel, dim3(args.heads, args.run), dim3(128), 0, stream, args);
}

}  // namespace tidal::cuda
