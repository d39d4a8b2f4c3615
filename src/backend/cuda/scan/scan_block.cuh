// Scores of one block by its sketch, by one warp, bit for bit those of sketch_scores() in backend/sketch.h.
//
// For each head of a tile the warp rounds q * scale to 8 bits, four channels a lane; the integer dot products are then
// made by mma: 16 positions are its rows, heads its columns, a sum for every plane of the codes. What does not depend
// on the channel (the two quotients) is made for several heads at once, a lane each.
#pragma once

#include "backend/cuda/runtime/device_functions.cuh"
#include "backend/cuda/scan/scan_scores.h"
#include "backend/sketch.h"

namespace tidal::cuda {

inline constexpr int kStripes = kBlockTokens / SketchLayout::kStripe;

/// What the kernel is launched with, and what SketchLayout knows.
struct ScanArguments {
  ScanScoresArgs of;
  int vectors;
  int codes_offset;
  int64_t bytes;
};

/// A variant of the kernel: for heads of `most_dim` elements, or (`exact` false) of at most so many, in tiles of at
/// most `heads` query heads, a power of two.
template <int bits, int most_dim, bool exact, int heads>
struct ScanVariant {
  static constexpr SketchLayout kLayout{most_dim, bits};
  static constexpr bool kExact = exact;
  static constexpr int kBits = bits, kPlanes = kLayout.planes();
  static constexpr int kVectors = kLayout.vectors(), kCodesOffset = kLayout.codes_offset();
  static constexpr int kChunks = (kVectors + 7) / 8;     ///< of 8 vectors in a stripe
  static constexpr int kQuads = (most_dim + 127) / 128;  ///< of channels a lane: 4 * lane on, 4 * lane + 128 on, ...
  static constexpr int kHeads = heads;
  static constexpr int kSums = most_dim / 16;  ///< products in each of the 16 sums of a base, at most
  /// Floats between the queries of two heads in shared memory, and words between their weights, which lie together:
  /// what is 4 words or 16 more than a power of 2 starts in other banks.
  static constexpr int kQueryStride = most_dim + 16;
  static constexpr int kWeightWords = kVectors * kPlanes + 4;

  __device__ static int dim(const ScanArguments& args) { return exact ? most_dim : args.of.head_dim; }
  __device__ static int vectors(const ScanArguments& args) { return exact ? kVectors : args.vectors; }
  __device__ static int codes_offset(const ScanArguments& args) { return exact ? kCodesOffset : args.codes_offset; }
};

/// Shared memory of one warp.
template <class V>
struct alignas(16) ScanMemory {
  float minimum[16 * V::kSums];
  uint32_t weights[V::kHeads][V::kWeightWords];  ///< four channels a word
  float2 factors[V::kHeads];                     ///< base and factor of the integer sums
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

/// The larger magnitude; NaN where either is.
__device__ inline float largest(float magnitude, float value) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(magnitude), "f"(fabsf(value)));
  return result;
}

/// One block's sketch in shared memory: SketchLayout.
template <class V>
struct Sketch {
  const char* bytes;

  /// Minimum or scale of the channels 4 * lane + 128 * i on; zeros behind the last.
  __device__ float4 minimum(const ScanArguments& args, int i) const { return quad(args, i, 0); }
  __device__ float4 scale(const ScanArguments& args, int i) const { return quad(args, i, 2 * V::dim(args)); }

  /// What lane (g = lane / 4, t = lane % 4) multiplies: positions 2g and 2g + 1 of a stripe in vector 8c + 4 * half +
  /// t.
  __device__ uint2 codes(const ScanArguments& args, int stripe, int c, int half) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, vectors = V::vectors(args);
    const int first = 8 * c + 4 * half;
    if (first >= vectors || (vectors % 4 != 0 && first + t >= vectors)) return {0, 0};
    return *reinterpret_cast<const uint2*>(bytes + V::codes_offset(args) + (t * SketchLayout::kVector + g * 8) +
                                           (stripe * vectors + first) * SketchLayout::kVector);
  }

 private:
  __device__ float4 quad(const ScanArguments& args, int i, int offset) const {
    const int channel = 4 * static_cast<int>(threadIdx.x % 32) + 128 * i;
    if (channel >= V::dim(args)) return {0, 0, 0, 0};
    return widen(*reinterpret_cast<const uint2*>(bytes + offset + 2 * channel));
  }
};

/// The weights of all heads where a largest product is 0, no number or at the end of what float32 holds: by the words
/// of sketch_query().
template <class V>
static __device__ __noinline__ void weigh_odd(const ScanArguments& args, Sketch<V> sketch, const float* q,
                                              ScanMemory<V>& memory) {
  const int lane = threadIdx.x % 32, dim = V::dim(args);
#pragma unroll 1
  for (int h = 0; h < V::kHeads; ++h) {
    float scaled[V::kQuads][4] = {};
    float top = 0;
#pragma unroll
    for (int i = 0; i < V::kQuads; ++i) {
      const int channel = 4 * lane + 128 * i;
      if (channel >= dim) continue;
      const float* const query = q + h * V::kQueryStride + channel;
      const float4 scale = sketch.scale(args, i);
      scaled[i][0] = __fmul_rn(query[0], scale.x), scaled[i][1] = __fmul_rn(query[1], scale.y);
      scaled[i][2] = __fmul_rn(query[2], scale.z), scaled[i][3] = __fmul_rn(query[3], scale.w);
#pragma unroll
      for (int j = 0; j < 4; ++j) top = fmaxf(top, fabsf(scaled[i][j]));  // NaN loses
    }
    top = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(top)));
    const float inverse = top > 0 ? __fdiv_rn(127.0f, top) : 0.0f;
#pragma unroll
    for (int i = 0; i < V::kQuads; ++i) {
      const int channel = 4 * lane + 128 * i;
      if (channel >= dim) continue;
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float rounded = rintf(__fmul_rn(scaled[i][j], inverse));
        const int weight = fabsf(rounded) <= 127.0f ? static_cast<int>(rounded) : 0;  // NaN has no integer
        word |= (static_cast<uint32_t>(weight) & 0xffu) << 8 * j;
      }
      memory.weights[h][channel / 4] = word;
    }
    if (lane == 0) memory.factors[h].y = __fdiv_rn(top, 127.0f);
  }
}

/// The weights of up to 4 heads from `first` on. Says whether one of them must be made by weigh_odd().
template <class V, int kBatch>
__device__ inline bool weigh_heads(const ScanArguments& args, const float4 (&scale)[V::kQuads], const float* q,
                                   int first, int heads, ScanMemory<V>& memory) {
  constexpr uint32_t kLeast = 0x0d800000, kMost = 0x7f000000;  // 2^-100, 2^127
  const int lane = threadIdx.x % 32, dim = V::dim(args);
  float scaled[kBatch][V::kQuads][4];
  uint32_t top = 0;  // of head lane % 16
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    float own = 0;
#pragma unroll
    for (int i = 0; i < V::kQuads; ++i) {
      const int channel = 4 * lane + 128 * i;
      float4 query = {0, 0, 0, 0};
      if (channel < dim) query = *reinterpret_cast<const float4*>(q + (first + b) * V::kQueryStride + channel);
      scaled[b][i][0] = __fmul_rn(query.x, scale[i].x), scaled[b][i][1] = __fmul_rn(query.y, scale[i].y);
      scaled[b][i][2] = __fmul_rn(query.z, scale[i].z), scaled[b][i][3] = __fmul_rn(query.w, scale[i].w);
#pragma unroll
      for (int j = 0; j < 4; ++j) own = largest(own, scaled[b][i][j]);
    }
    // Not negative: in the order of their bits, NaN above all.
    const uint32_t of_warp = __reduce_max_sync(0xffffffffu, __float_as_uint(own));
    if (lane % 16 == b) top = of_warp;
  }
  const bool usual = top - kLeast < kMost - kLeast;
  const float known = usual ? __uint_as_float(top) : 1.0f;
  const float quotient = __fdiv_rn(lane < 16 ? 127.0f : known, lane < 16 ? known : 127.0f);
  if (lane >= 16 && lane - 16 < kBatch) memory.factors[first + lane - 16].y = quotient;
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    const float inverse = __shfl_sync(0xffffffffu, quotient, b);
#pragma unroll
    for (int i = 0; i < V::kQuads; ++i) {
      // The integer nearest to a product of at most 127 is in the low byte of the sum; ties to even, as additions do.
      constexpr float kShifter = 0x1.8p23f;
      uint32_t whole[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        whole[j] = __float_as_uint(__fadd_rn(__fmul_rn(scaled[b][i][j], inverse), kShifter));
      }
      const uint32_t low = __byte_perm(whole[0], whole[1], 0x0040), high = __byte_perm(whole[2], whole[3], 0x0040);
      const int channel = 4 * lane + 128 * i;
      if (channel < dim) {
        memory.weights[first + b][channel / 4] = __byte_perm(low, high, 0x5410);
      }
    }
  }
  return lane < 16 && lane < kBatch && first + lane < heads && !usual;
}

/// q . minimum of all heads: a head's 16 sums are dealt to 16 lanes, or two each to 8 where there are several heads.
template <class V>
__device__ inline void add_bases(const ScanArguments& args, const float* q, ScanMemory<V>& memory) {
  constexpr int kPer = V::kHeads == 1 ? 1 : 2, kLanes = 16 / kPer, kAtOnce = 32 / kLanes;
  const int lane = threadIdx.x % 32, dim = V::dim(args), own = lane % kLanes * kPer;
#pragma unroll
  for (int first = 0; first < V::kHeads; first += kAtOnce) {
    const int h = min(first + lane / kLanes, V::kHeads - 1);
    const float* const query = q + h * V::kQueryStride + own;
    float sums[kPer] = {};
#pragma unroll
    for (int k = 0; k < V::kSums; ++k) {
      if (16 * k >= dim) break;
      if constexpr (kPer == 2) {
        const float2 minimum = *reinterpret_cast<const float2*>(memory.minimum + 16 * k + own);
        const float2 two = *reinterpret_cast<const float2*>(query + 16 * k);
        sums[0] = __fmaf_rn(two.x, minimum.x, sums[0]);
        sums[1] = __fmaf_rn(two.y, minimum.y, sums[1]);
      } else {
        sums[0] = __fmaf_rn(query[16 * k], memory.minimum[16 * k + own], sums[0]);
      }
    }
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) sums[i] = __fadd_rn(sums[i], __shfl_xor_sync(0xffffffffu, sums[i], half));
    }
    if (lane % kLanes == 0 && first + lane / kLanes < V::kHeads) {
      memory.factors[h].x = kPer == 2 ? __fadd_rn(sums[0], sums[kPer - 1]) : sums[0];
    }
  }
}

/// sketch_query() for all heads of the tile. q: [kHeads, kQueryStride], shared memory; `heads` of them are
/// there.
template <class V>
__device__ inline void weigh(const ScanArguments& args, const Sketch<V>& sketch, const float* q, int heads,
                             ScanMemory<V>& memory) {
  constexpr int kMost = V::kQuads == 1 ? 4 : 2, kBatch = V::kHeads < kMost ? V::kHeads : kMost;
  const int lane = threadIdx.x % 32, dim = V::dim(args);
  float4 scale[V::kQuads];
#pragma unroll
  for (int i = 0; i < V::kQuads; ++i) {
    const int channel = 4 * lane + 128 * i;
    if (channel < dim) *reinterpret_cast<float4*>(memory.minimum + channel) = sketch.minimum(args, i);
    scale[i] = sketch.scale(args, i);
  }
  bool odd = false;
#pragma unroll
  for (int first = 0; first < V::kHeads; first += kBatch) {
    odd |= weigh_heads<V, kBatch>(args, scale, q, first, heads, memory);
  }
  __syncwarp();
  if (__any_sync(0xffffffffu, odd)) weigh_odd<V>(args, sketch, q, memory);
  add_bases<V>(args, q, memory);
  __syncwarp();
}

/// Scores of the 64 positions of a block: score[h][2s + i] is that of position 16s + 2g + i and head 2t + h.
template <class V>
__device__ inline void score_block(const ScanArguments& args, const Sketch<V>& sketch, ScanMemory<V>& memory,
                                   float (&score)[2][2 * kStripes]) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  // Columns behind the last head are those of some other.
  const int g = lane / 4 % V::kHeads;
  uint32_t weights[V::kChunks][V::kPlanes][2];
#pragma unroll
  for (int c = 0; c < V::kChunks; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Behind the last vector all codes are 0, whatever the weight.
      const int vector = min(8 * c + 4 * half + t, V::vectors(args) - 1);
      const uint32_t* const from = memory.weights[g] + vector * V::kPlanes;
      if constexpr (V::kPlanes == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        weights[c][0][half] = two.x, weights[c][1][half] = two.y;
      } else {
#pragma unroll
        for (int j = 0; j < V::kPlanes; j += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(from + j);
          weights[c][j][half] = four.x, weights[c][j + 1][half] = four.y;
          weights[c][j + 2][half] = four.z, weights[c][j + 3][half] = four.w;
        }
      }
    }
  }
  const float2 first = memory.factors[2 * t % V::kHeads], second = memory.factors[(2 * t + 1) % V::kHeads];
#pragma unroll
  for (int s = 0; s < kStripes; ++s) {
    // Planes are multiplied where they lie in the bytes, and so 2^(bits * plane) times.
    int dots[V::kPlanes][4] = {};
    uint2 codes[V::kChunks][2];
#pragma unroll
    for (int c = 0; c < V::kChunks; ++c) {
      codes[c][0] = sketch.codes(args, s, c, 0);
      codes[c][1] = sketch.codes(args, s, c, 1);
    }
#pragma unroll
    for (int j = 0; j < V::kPlanes; ++j) {
      constexpr uint32_t kLowest = ((1u << V::kBits) - 1) * 0x01010101u;
      const uint32_t mask = kLowest << V::kBits * j;
#pragma unroll
      for (int c = 0; c < V::kChunks; ++c) {
        const uint2 low = codes[c][0], high = codes[c][1];
        const uint32_t a[4] = {low.x & mask, low.y & mask, high.x & mask, high.y & mask};
        multiply_add(dots[j], a, weights[c][j]);
      }
    }
    int dot[4];
#pragma unroll
    for (int i = 0; i < 4; i += V::kHeads == 1 ? 2 : 1) {
      int sum = dots[0][i];
#pragma unroll
      for (int j = 1; j < V::kPlanes; ++j) sum = (sum << V::kBits) + dots[j][i];
      dot[i] = sum >> V::kBits * (V::kPlanes - 1);
    }
    score[0][2 * s] = __fmaf_rn(first.y, static_cast<float>(dot[0]), first.x);
    score[0][2 * s + 1] = __fmaf_rn(first.y, static_cast<float>(dot[2]), first.x);
    if (V::kHeads > 1) {
      score[1][2 * s] = __fmaf_rn(second.y, static_cast<float>(dot[1]), second.x);
      score[1][2 * s + 1] = __fmaf_rn(second.y, static_cast<float>(dot[3]), second.x);
    }
  }
}

}  // namespace tidal::cuda
