// How the parts of one row's attention come together: those of a CTA's warps in shared memory, those of the splits in
// global memory.
#pragma once

#include "backend/cuda/attention/attend_args.h"
#include "backend/cuda/runtime/device_functions.cuh"

namespace tidal::cuda {

inline constexpr int kSlice = 16;       // positions of one step of a warp
inline constexpr int kAttendWarps = 4;  // of a CTA
inline constexpr int kAttendThreads = 32 * kAttendWarps;
inline constexpr int kPieceStep = kSlice * kAttendWarps;  // pieces are whole numbers of these

template <int kDim, KvType kType>
struct AttendSizes {
  static constexpr int kRowBytes = KvRowLayout{kType, kDim}.bytes();  // [K | V]
  static constexpr int kScales = KvRowLayout{kType, kDim}.scales();   // of K, and of V; with 8 bits
  // An odd number of 16-byte units: the 8 rows of an ldmatrix lie in 8 different groups of banks.
  static constexpr int kStride = kRowBytes % 32 == 0 ? kRowBytes + 16 : kRowBytes;
  static constexpr int kSliceBytes = kSlice * kStride;
  static constexpr int kStages = (kDim <= 64 ? 4 : kDim <= 128 ? 3 : 2) + (kType == KvType::Q8 && kDim > 64 ? 1 : 0);
  static constexpr int kSharedBytes = kAttendWarps * kStages * kSliceBytes;
  static constexpr int kCtas = kDim <= 128 ? 2 : 1;  // on one multiprocessor, at least
};

/// The state of a warp: lane (g = lane / 4, t = lane % 4) has heads 2t and 2t + 1.
template <int kDim>
struct WarpState {
  float out[kDim / 16][4] =
      {};  // channels 16i + channel_of(0): heads 2t, 2t + 1; channels 16i + channel_of(1): the same
  float maximum[2] = {negative_infinity(), negative_infinity()};  // of all lanes
  float sum[2] = {0, 0};                                          // of this lane's positions
};

/// Which of 16 channels a lane's first (0) or second (1) pair of outputs is of. With 8 bits two neighbours come out of
/// the same transposed word.
template <KvType kType>
__device__ inline int channel_of(int which) {
  const int g = threadIdx.x % 32 / 4;
  return kType == KvType::Q8 ? 2 * g + which : g + 8 * which;
}

/// Queries cut in three: for every 16 channels, two halves of them, as load_query() has them.
template <int kDim>
using Query = uint32_t[kDim / 16][2][3];

/// What a CTA works on.
struct AttendTask {
  int row;      // of the batch
  int run_row;  // of the run
  int first_head;
  int heads;  // <= kTileHeads
  int begin;  // position in the context or the selection
  int count;
  int unseen = 0;  // of these, the first, which are before the window
};

/// Factor of a part in a merge: 2^((maximum - top) * scale). Nothing but -infinity: 0 beside others, else NaN, as the
/// softmax of nothing is.
__device__ inline float part_factor(float maximum, float top, float scale) {
  return power_of_two(__fmul_rn(__fsub_rn(maximum, top), scale));
}

/// The sum that a head's output is divided by: with the term of its sink, if it has one.
__device__ inline float with_sink(const AttendRowsArgs& args, int head, float top, float sum) {
  if (!args.sink_logits) return sum;
  constexpr float kLog2e = 1.4426950408889634f;
  return __fadd_rn(sum, power_of_two(__fmaf_rn(__ldg(args.sink_logits + head), kLog2e, -__fmul_rn(top, args.scale))));
}

/// Merges the splits of a tile of heads, in order, and writes the output.
template <int kDim>
__device__ inline void merge_splits(const AttendRowsArgs& args, const AttendTask& task, int used, char* shared) {
  constexpr int kAhead = 8;                                // parts that are asked for before the weights are known
  auto* const weights = reinterpret_cast<float*>(shared);  // [heads, kMaxSplits]
  float* const inverse = weights + kTileHeads * kMaxSplits;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(task.run_row) * args.tiles.heads + task.first_head;
  const auto part_of = [&](int i) {  // the first split's four channels
    return reinterpret_cast<const float4*>(args.parts + (first + i / (kDim / 4)) * args.splits * kDim) + i % (kDim / 4);
  };
  float4 ahead[kAhead] = {};
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s < used && static_cast<int>(threadIdx.x) < task.heads * kDim / 4) {
      ahead[s] = __ldcg(part_of(threadIdx.x) + s * (kDim / 4));
    }
  }
  for (int h = warp; h < task.heads; h += kAttendWarps) {
    const SoftmaxPart* const parts = args.part_statistics + (first + h) * args.splits;
    SoftmaxPart own[kMaxSplits / 32];
    float top = negative_infinity();
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      const int s = i * 32 + lane;
      own[i] = {negative_infinity(), 0};
      if (s < used) {
        const float2 part = __ldcg(reinterpret_cast<const float2*>(parts + s));
        own[i] = {part.x, part.y};
      }
      top = fmaxf(top, own[i].maximum);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, apart));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      const int s = i * 32 + lane;
      if (s >= used) continue;
      const float weight = part_factor(own[i].maximum, top, args.scale);
      weights[h * kMaxSplits + s] = weight;
      sum = __fmaf_rn(weight, own[i].sum, sum);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
    if (lane == 0) {
      inverse[h] = __fdiv_rn(1.0f, with_sink(args, task.first_head + h, top, sum));
      if (args.scores) args.statistics[first + h] = {top, sum};
    }
  }
  __syncthreads();
  float* const out = args.out + (static_cast<int64_t>(task.row) * args.tiles.heads + task.first_head) * kDim;
  for (int i = threadIdx.x; i < task.heads * kDim / 4; i += kAttendThreads) {
    const int h = i / (kDim / 4);
    const float4* const part = part_of(i);
    float4 sum = {0, 0, 0, 0};
    const auto add = [&](int s, const float4& value) {
      const float weight = weights[h * kMaxSplits + s];
      sum.x = __fmaf_rn(weight, value.x, sum.x);
      sum.y = __fmaf_rn(weight, value.y, sum.y);
      sum.z = __fmaf_rn(weight, value.z, sum.z);
      sum.w = __fmaf_rn(weight, value.w, sum.w);
    };
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (s < used) add(s, i < kAttendThreads ? ahead[s] : __ldcg(part + s * (kDim / 4)));
    }
#pragma unroll 8
    for (int s = kAhead; s < used; ++s) add(s, __ldcg(part + s * (kDim / 4)));
    const float by = inverse[h];
    reinterpret_cast<float4*>(out)[i] = {__fmul_rn(sum.x, by), __fmul_rn(sum.y, by), __fmul_rn(sum.z, by),
                                         __fmul_rn(sum.w, by)};
  }
}

/// Merges the warps' parts; writes the output where the row has one split only, else the split's part.
template <int kDim, KvType kType>
__device__ inline void merge_warps(const AttendRowsArgs& args, const AttendTask& task, int used,
                                   const WarpState<kDim>& state, char* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  auto* const outs = reinterpret_cast<float*>(shared);  // [warps, heads, channels]
  auto* const statistics = reinterpret_cast<SoftmaxPart*>(outs + kAttendWarps * kTileHeads * kDim);  // [warps, heads]
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (2 * t + h >= task.heads) continue;
    float* const to = outs + (warp * kTileHeads + 2 * t + h) * kDim;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      to[16 * i + channel_of<kType>(0)] = state.out[i][h];
      to[16 * i + channel_of<kType>(1)] = state.out[i][2 + h];
    }
    if (g == 0) statistics[warp * kTileHeads + 2 * t + h] = {state.maximum[h], state.sum[h]};
  }
  __syncthreads();
  const int64_t first = static_cast<int64_t>(task.run_row) * args.tiles.heads + task.first_head;
  for (int i = threadIdx.x; i < task.heads * kDim; i += kAttendThreads) {
    const int h = i / kDim, d = i % kDim;
    float top = negative_infinity(), sum = 0, value = 0;
#pragma unroll
    for (int w = 0; w < kAttendWarps; ++w) top = fmaxf(top, statistics[w * kTileHeads + h].maximum);
#pragma unroll
    for (int w = 0; w < kAttendWarps; ++w) {
      const SoftmaxPart part = statistics[w * kTileHeads + h];
      const float factor = part_factor(part.maximum, top, args.scale);
      sum = __fmaf_rn(factor, part.sum, sum);
      value = __fmaf_rn(factor, outs[(w * kTileHeads + h) * kDim + d], value);
    }
    if (used == 1) {
      args.out[(static_cast<int64_t>(task.row) * args.tiles.heads + task.first_head) * kDim + i] =
          __fmul_rn(value, __fdiv_rn(1.0f, with_sink(args, task.first_head + h, top, sum)));
      if (args.scores && d == 0) args.statistics[first + h] = {top, sum};
    } else {
      args.parts[((first + h) * args.splits + blockIdx.x) * kDim + d] = value;
      if (d == 0) args.part_statistics[(first + h) * args.splits + blockIdx.x] = {top, sum};
    }
  }
}

}  // namespace tidal::cuda
