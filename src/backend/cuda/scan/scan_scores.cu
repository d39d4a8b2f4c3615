// Raw scores of a Scan layer: full blocks by their sketches, the block still filling by its keys (backend/sketch.h).
//
// Grid (splits, tiles of heads, rows), 8 warps. A warp takes a block at a time, the next one's sketch on its way to
// registers meanwhile. For each head it rounds q * scale to 8 bits, four channels a lane; the integer dot products are
// then made by mma: 16 positions are its rows, heads its columns, all planes of the codes one sum.
#include "backend/cuda/scan/scan_scores.h"

#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/sketch.h"

namespace tidal::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStripes = kBlockTokens / SketchLayout::kStripe;

/// The arguments, and what SketchLayout knows.
struct Arguments {
  ScanScoresArgs of;
  int vectors;
  int codes_offset;
  int64_t bytes;
  int weight_words;  // of one head in shared memory
};

/// sums [16 x 8] += a [16 x 32] * b [32 x 8].
__device__ inline void multiply_add(int (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four bf16 as float32.
__device__ inline float4 widen(uint2 four) {
  return {__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000u), __uint_as_float(four.y << 16),
          __uint_as_float(four.y & 0xffff0000u)};
}

/// A softmax as it grows, of one lane and head.
struct Growing {
  float maximum = negative_infinity();
  float sum = 0;

  template <int kCount>
  __device__ void add(const float (&scores)[kCount], float scale) {
    float top = maximum;
#pragma unroll
    for (int i = 0; i < kCount; ++i) top = fmaxf(top, scores[i]);
    const float from = top == negative_infinity() ? 0.0f : top;
    sum = maximum == top ? sum : __fmul_rn(sum, power_of_two(__fmul_rn(__fsub_rn(maximum, from), scale)));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum = __fadd_rn(sum, power_of_two(__fmul_rn(__fsub_rn(scores[i], from), scale)));
    }
    maximum = top;
  }

  __device__ void add(float other_maximum, float other_sum, float scale) {
    const float top = fmaxf(maximum, other_maximum);
    sum = __fmaf_rn(factor(maximum, top, scale), sum, __fmul_rn(factor(other_maximum, top, scale), other_sum));
    maximum = top;
  }

  __device__ static float factor(float of, float top, float scale) {
    return of == top ? 1.0f : power_of_two(__fmul_rn(__fsub_rn(of, top), scale));
  }
};

/// What a lane (g = lane / 4, t = lane % 4) holds of one block's sketch: the codes of positions 2g and 2g + 1 of each
/// stripe in the vectors 8c + t and 8c + t + 4; minimum and scale of the channels 4 * lane (and 4 * lane + 128) on.
template <int kChunks, bool kWide>
struct Sketch {
  uint2 codes[kStripes][kChunks][2];
  uint2 minimum[1 + kWide], scale[1 + kWide];

  __device__ void load(const Arguments& args, int64_t block, int kv_head) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const auto* const from =
        reinterpret_cast<const char*>(args.of.sketches) + (block * args.of.tiles.kv_heads + kv_head) * args.bytes;
    const char* const first = from + args.codes_offset + t * SketchLayout::kVector + g * 8;
#pragma unroll
    for (int s = 0; s < kStripes; ++s) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int vector = 8 * c + 4 * half;
          codes[s][c][half] = {0, 0};
          if (vector + t < args.vectors) {
            codes[s][c][half] =
                *reinterpret_cast<const uint2*>(first + (s * args.vectors + vector) * SketchLayout::kVector);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 1 + kWide; ++i) {
      const int channel = 4 * lane + 128 * i;
      minimum[i] = scale[i] = {0, 0};
      if (channel < args.of.head_dim) {
        minimum[i] = *reinterpret_cast<const uint2*>(from + 2 * channel);
        scale[i] = *reinterpret_cast<const uint2*>(from + 2 * (args.of.head_dim + channel));
      }
    }
  }
};

/// Shared memory of one warp.
struct WarpMemory {
  float* minimum;     // [head_dim]
  uint32_t* weights;  // [kTileHeads, weight_words], four channels a word
  float2* factors;    // [kTileHeads], base and factor of the integer sums
};

/// sketch_query() for all heads of the tile. q: [heads, head_dim], shared memory.
template <int kChunks, bool kWide>
__device__ inline void weigh(const Arguments& args, const Sketch<kChunks, kWide>& sketch, const float* q, int heads,
                             const WarpMemory& memory) {
  const int lane = threadIdx.x % 32, dim = args.of.head_dim;
#pragma unroll
  for (int i = 0; i < 1 + kWide; ++i) {
    const int channel = 4 * lane + 128 * i;
    if (channel < dim) *reinterpret_cast<float4*>(memory.minimum + channel) = widen(sketch.minimum[i]);
  }
  for (int h = 0; h < heads; ++h) {
    float scaled[1 + kWide][4] = {};
    float top = 0;
#pragma unroll
    for (int i = 0; i < 1 + kWide; ++i) {
      const int channel = 4 * lane + 128 * i;
      if (channel < dim) {
        const float4 query = *reinterpret_cast<const float4*>(q + h * dim + channel), scale = widen(sketch.scale[i]);
        scaled[i][0] = __fmul_rn(query.x, scale.x), scaled[i][1] = __fmul_rn(query.y, scale.y);
        scaled[i][2] = __fmul_rn(query.z, scale.z), scaled[i][3] = __fmul_rn(query.w, scale.w);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) top = fmaxf(top, fabsf(scaled[i][j]));  // NaN loses
    }
    // Not negative: in the order of their bits.
    top = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(top)));
    const float inverse = top > 0 ? __fdiv_rn(127.0f, top) : 0.0f;
#pragma unroll
    for (int i = 0; i < 1 + kWide; ++i) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float rounded = rintf(__fmul_rn(scaled[i][j], inverse));
        const int weight = fabsf(rounded) <= 127.0f ? static_cast<int>(rounded) : 0;  // NaN has no integer
        word |= (static_cast<uint32_t>(weight) & 0xffu) << 8 * j;
      }
      const int channel = 4 * lane + 128 * i;
      if (channel < dim) memory.weights[h * args.weight_words + channel / 4] = word;
    }
    if (lane == 0) memory.factors[h].y = __fdiv_rn(top, 127.0f);
  }
  __syncwarp();
  // The base: 16 sums, one a lane, of two heads at a time.
  for (int pair = 0; pair < heads; pair += 2) {
    const int h = pair + lane / 16;
    float sum = 0;
    if (h < heads) {
#pragma unroll
      for (int i = 0; i < (kWide ? 16 : 8); ++i) {
        const int d = 16 * i + lane % 16;
        if (16 * i < dim) sum = __fmaf_rn(q[h * dim + d], memory.minimum[d], sum);
      }
    }
#pragma unroll
    for (int half = 8; half > 0; half /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, half));
    if (h < heads && lane % 16 == 0) memory.factors[h].x = sum;
  }
  __syncwarp();
}

/// Scores of the 64 positions of a block: score[h][2s + i] is that of position 16s + 2g + i and head 2t + h.
template <int kBits, int kChunks, bool kWide>
__device__ inline void score_block(const Arguments& args, const Sketch<kChunks, kWide>& sketch,
                                   const WarpMemory& memory, float (&score)[2][2 * kStripes]) {
  constexpr int kPlanes = 8 / kBits;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t weights[kChunks][kPlanes][2];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Behind the last vector all codes are 0, whatever the weight.
      const int vector = min(8 * c + 4 * half + t, args.vectors - 1);
      const uint32_t* const from = memory.weights + g * args.weight_words + vector * kPlanes;
      if constexpr (kPlanes == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        weights[c][0][half] = two.x, weights[c][1][half] = two.y;
      } else {
#pragma unroll
        for (int j = 0; j < kPlanes; j += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(from + j);
          weights[c][j][half] = four.x, weights[c][j + 1][half] = four.y;
          weights[c][j + 2][half] = four.z, weights[c][j + 3][half] = four.w;
        }
      }
    }
  }
  const float2 first = memory.factors[2 * t], second = memory.factors[2 * t + 1];
#pragma unroll
  for (int s = 0; s < kStripes; ++s) {
    int dot[4] = {};
#pragma unroll
    for (int j = 0; j < kPlanes; ++j) {
      constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x01010101u;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const uint2 low = sketch.codes[s][c][0], high = sketch.codes[s][c][1];
        const uint32_t a[4] = {low.x >> kBits * j & kMask, low.y >> kBits * j & kMask, high.x >> kBits * j & kMask,
                               high.y >> kBits * j & kMask};
        multiply_add(dot, a, weights[c][j]);
      }
    }
    score[0][2 * s] = __fmaf_rn(first.y, static_cast<float>(dot[0]), first.x);
    score[1][2 * s] = __fmaf_rn(second.y, static_cast<float>(dot[1]), second.x);
    score[0][2 * s + 1] = __fmaf_rn(first.y, static_cast<float>(dot[2]), first.x);
    score[1][2 * s + 1] = __fmaf_rn(second.y, static_cast<float>(dot[3]), second.x);
  }
}

/// Scores of the block still filling, from its keys: 8 positions a warp, 4 lanes each. score[h]: of position
/// 8 * warp + g and head 2t + h.
__device__ inline void score_keys(const Arguments& args, const Bf16* tile, int filling, const float* q, int heads,
                                  float (&score)[2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, dim = args.of.head_dim;
  const Bf16* const key = tile + static_cast<int64_t>(min(8 * warp + g, filling - 1)) * 2 * dim;
  float sums[kTileHeads] = {};
  for (int d = 8 * t; d < dim; d += 32) {
    const uint4 eight = *reinterpret_cast<const uint4*>(key + d);
    const float4 low = widen({eight.x, eight.y}), high = widen({eight.z, eight.w});
#pragma unroll
    for (int h = 0; h < kTileHeads; ++h) {
      if (h >= heads) break;
      const float4 first = *reinterpret_cast<const float4*>(q + h * dim + d);
      const float4 second = *reinterpret_cast<const float4*>(q + h * dim + d + 4);
      float sum = sums[h];
      sum = __fmaf_rn(first.x, low.x, sum), sum = __fmaf_rn(first.y, low.y, sum);
      sum = __fmaf_rn(first.z, low.z, sum), sum = __fmaf_rn(first.w, low.w, sum);
      sum = __fmaf_rn(second.x, high.x, sum), sum = __fmaf_rn(second.y, high.y, sum);
      sum = __fmaf_rn(second.z, high.z, sum), sum = __fmaf_rn(second.w, high.w, sum);
      sums[h] = sum;
    }
  }
#pragma unroll
  for (int h = 0; h < kTileHeads; ++h) {
    sums[h] = __fadd_rn(sums[h], __shfl_xor_sync(0xffffffffu, sums[h], 1));
    sums[h] = __fadd_rn(sums[h], __shfl_xor_sync(0xffffffffu, sums[h], 2));
    if (h / 2 == t) score[h % 2] = sums[h];
  }
}

/// Merges the statistics of lanes, warps and splits, each in order.
__device__ inline void merge_statistics(const ScanScoresArgs& args, const Growing (&own)[2], int run_row,
                                        int first_head, int heads, uint32_t* flag) {
  __shared__ SoftmaxPart of_warps[kWarps][kTileHeads];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Growing merged = own[h];
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2) {
      const float maximum = __shfl_xor_sync(0xffffffffu, merged.maximum, apart);
      merged.add(maximum, __shfl_xor_sync(0xffffffffu, merged.sum, apart), args.scale);
    }
    if (lane < 4) of_warps[warp][2 * lane + h] = {merged.maximum, merged.sum};
  }
  __syncthreads();
  const int64_t first = static_cast<int64_t>(run_row) * args.tiles.heads + first_head;
  if (static_cast<int>(threadIdx.x) < heads) {
    Growing merged;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      merged.add(of_warps[w][threadIdx.x].maximum, of_warps[w][threadIdx.x].sum, args.scale);
    }
    args.part_statistics[(first + threadIdx.x) * args.splits + blockIdx.x] = {merged.maximum, merged.sum};
  }
  if (!arrives_last(args.done + static_cast<int64_t>(run_row) * gridDim.y + blockIdx.y, args.splits, flag)) return;
  for (int h = warp; h < heads; h += kWarps) {
    Growing merged;
    for (int s = lane; s < args.splits; s += 32) {
      const float2 part = __ldcg(reinterpret_cast<const float2*>(args.part_statistics + (first + h) * args.splits + s));
      merged.add(part.x, part.y, args.scale);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      const float maximum = __shfl_xor_sync(0xffffffffu, merged.maximum, apart);
      merged.add(maximum, __shfl_xor_sync(0xffffffffu, merged.sum, apart), args.scale);
    }
    if (lane == 0) args.statistics[first + h] = {merged.maximum, merged.sum};
  }
}

template <int kBits, int kChunks, bool kWide>
__global__ void __launch_bounds__(kThreads, kChunks == 4 ? 1 : 2)
    scan_scores_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(16) char memory[];
  __shared__ float2 factors[kWarps][kTileHeads];
  __shared__ uint32_t flag;
  const HeadTiles& tiles = args.of.tiles;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, dim = args.of.head_dim;
  const int run_row = blockIdx.z, row = args.of.first_row + run_row;
  const int in_set = blockIdx.y % tiles.per_set * kTileHeads;
  const int first_head = blockIdx.y / tiles.per_set * tiles.set + in_set, heads = min(kTileHeads, tiles.set - in_set);
  const int kv_head = first_head / (tiles.heads / tiles.kv_heads);
  const DeviceRow at = row_of(args.of.tables, row);
  const bool weighs = args.of.needs_statistics || args.of.tables.chunks[args.of.tables.row_chunk[row]].top_p < 1;
  auto* const q = reinterpret_cast<float*>(memory);  // [kTileHeads, head_dim]
  float* const own = q + kTileHeads * dim + warp * (dim + kTileHeads * args.weight_words);
  const WarpMemory warp_memory{own, reinterpret_cast<uint32_t*>(own + dim), factors[warp]};

  const int filled = at.context / kBlockTokens, step = args.of.splits * kWarps;
  const int first_block = warp * args.of.splits + blockIdx.x;
  Sketch<kChunks, kWide> next;
  int after = 0;
  const int first_id = first_block < filled ? at.table[first_block] : 0;
  if (first_block + step < filled) after = at.table[first_block + step];
  // Blocks that were full before this pass were sketched before, too.
  const bool settled = args.of.early && first_block < at.position / kBlockTokens;
  if (settled) next.load(args, first_id, kv_head);
  wait_for_kernels_before();
  if (!settled && first_block < filled) next.load(args, first_id, kv_head);
  const float* const query = args.of.q + (static_cast<int64_t>(row) * tiles.heads + first_head) * dim;
  for (int i = threadIdx.x; i < heads * dim / 4; i += kThreads) {
    reinterpret_cast<float4*>(q)[i] = reinterpret_cast<const float4*>(query)[i];
  }
  __syncthreads();

  float* const scores =
      args.of.scores + (static_cast<int64_t>(run_row) * tiles.heads + first_head + 2 * t) * args.of.score_stride;
  Growing softmax[2];
  for (int block = first_block; block < filled; block += step) {
    const Sketch<kChunks, kWide> sketch = next;
    if (block + step < filled) {
      next.load(args, after, kv_head);
      if (block + 2 * step < filled) after = at.table[block + 2 * step];
    }
    weigh(args, sketch, q, heads, warp_memory);
    float score[2][2 * kStripes];
    score_block<kBits, kChunks, kWide>(args, sketch, warp_memory, score);
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (2 * t + h < heads) {
        float* const to = scores + h * args.of.score_stride + block * kBlockTokens + 2 * g;
#pragma unroll
        for (int s = 0; s < kStripes; ++s) {
          *reinterpret_cast<float2*>(to + 16 * s) = {score[h][2 * s], score[h][2 * s + 1]};
        }
      }
      if (weighs && h < heads) softmax[h].add(score[h], args.of.scale);
    }
  }
  // The CTA with the fewest full blocks.
  const int filling = at.context % kBlockTokens;
  if (filling > 0 && static_cast<int>(blockIdx.x) == args.of.splits - 1) {
    const int64_t tile = static_cast<int64_t>(at.table[filled]) * tiles.kv_heads + kv_head;
    float score[2];
    score_keys(args, args.of.kv + tile * 2 * kBlockTokens * dim, filling, q, heads, score);
    const int position = 8 * warp + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (position >= filling || 2 * t + h >= heads) continue;
      scores[h * args.of.score_stride + filled * kBlockTokens + position] = score[h];
      const float one[1] = {score[h]};
      if (weighs) softmax[h].add(one, args.of.scale);
    }
  }
  if (weighs) merge_statistics(args.of, softmax, run_row, first_head, heads, &flag);
}

template <int kBits, int kChunks, bool kWide>
void launch_instance(const Arguments& args, cudaStream_t stream) {
  const dim3 grid(args.of.splits, args.of.tiles.tiles(), args.of.run);
  const int dim = args.of.head_dim;
  const size_t shared = sizeof(float) * (kTileHeads * dim + kWarps * (dim + kTileHeads * args.weight_words));
  constexpr const char* kWhat = "scores from sketches";
  const auto kernel = scan_scores_kernel<kBits, kChunks, kWide>;
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), kWhat);
  }
  launch(kWhat, Start::Early, kernel, grid, dim3(kThreads), shared, stream, args);
}

}  // namespace

void launch_scan_scores(const ScanScoresArgs& of, cudaStream_t stream) {
  const SketchLayout layout{of.head_dim, of.bits};
  Arguments args{of, layout.vectors(), layout.codes_offset(), layout.bytes(), 0};
  // 16 bytes more: heads' weights start in different groups of banks.
  args.weight_words = layout.vectors() * layout.planes() + 4;
  const bool wide = of.head_dim > 128;
  if (of.bits == 1)
    return wide ? launch_instance<1, 1, true>(args, stream) : launch_instance<1, 1, false>(args, stream);
  if (of.bits == 2)
    return wide ? launch_instance<2, 2, true>(args, stream) : launch_instance<2, 1, false>(args, stream);
  if (wide) return launch_instance<4, 4, true>(args, stream);
  return layout.vectors() > 8 ? launch_instance<4, 2, false>(args, stream) : launch_instance<4, 1, false>(args, stream);
}

}  // namespace tidal::cuda
