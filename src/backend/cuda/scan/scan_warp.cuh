// What warps do with the blocks of a context: score one after the other, the sketches of the next ones on their way,
// and keep what a softmax over the scores needs.
#pragma once

#include <cuda_fp16.h>

#include "backend/cuda/scan/running_softmax.cuh"
#include "backend/cuda/scan/scan_block.cuh"

namespace tidal::cuda {

inline constexpr int kScanWarps = 8;
inline constexpr int kScanThreads = 32 * kScanWarps;

/// Sketches of a warp on their way to shared memory: some 8 KiB. Without a ring: one, which is not there at all.
template <class V, bool kRing>
constexpr int stages() {
  if (!kRing) return 1;
  return V::kLayout.bytes() <= 3072 ? 3 : 2;
}

/// Shared memory of a CTA.
template <class V, bool kRing>
struct ScanShared {
  alignas(16) char sketches[kScanWarps][stages<V, kRing>()][kRing ? V::kLayout.bytes() : 16];
  alignas(16) float q[V::kHeads * V::kQueryStride];
  ScanMemory<V> of_warps[kScanWarps];
};

/// Every step-th block from `first` on, of one warp, through a ring in shared memory; or from where they are, on
/// devices that have no room for it.
template <class V, bool kRing>
class BlockRing {
 public:
  /// table: of the sequence's blocks; slots: [stages()] sketches.
  __device__ BlockRing(const ScanArguments& args, const int32_t* table, int kv_head, int first, int step, int end,
                       char* slots)
      : args_(args),
        sketches_(reinterpret_cast<const char*>(args.of.sketches) + kv_head * args.of.sketch_stride),
        stride_(args.of.tiles.kv_heads * args.of.sketch_stride),
        table_(table),
        first_(first),
        step_(step),
        end_(end),
        slots_(slots) {
#pragma unroll
    for (int i = 0; i < kLength; ++i) ids_[i] = find(first + i * step);
  }

  /// Asks for the first sketches below block `settled`.
  __device__ void load_settled(int settled) {
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      const int block = first_ + i * step_;
      if (block < min(settled, end_)) copy(i * kBytes, ids_[i]), commit_copies();
    }
  }
  /// Asks for those from `settled` on.
  __device__ void load_others(int settled) {
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      const int block = first_ + i * step_;
      if (block < min(settled, end_)) continue;
      if (block < end_) copy(i * kBytes, ids_[i]);
      commit_copies();
    }
  }

  /// Calls use(sketch) for all in their order, when both of the above have been called.
  template <typename Use>
  __device__ void run(Use use) {
    const int32_t* ahead = table_ + first_ + kLength * step_;
    int left = (end_ - first_ + step_ - 1) / step_;
    int32_t id = left > kLength ? *ahead : 0, now = ids_[0];
    int slot = 0;
#pragma unroll 1
    for (; left > 0; --left) {
      if constexpr (kRing) {
        wait_for_copies<kLength - 1>();
        __syncwarp();
        use(Sketch<V>{slots_ + slot});
        __syncwarp();
        if (left > kLength) copy(slot, id);
        commit_copies();
      } else {
        use(Sketch<V>{sketches_ + now * stride_});
        now = id;
      }
      ahead += step_;
      if (left > kLength + 1) id = *ahead;
      slot = slot == (kLength - 1) * kBytes ? 0 : slot + kBytes;
    }
  }

 private:
  static constexpr int kLength = stages<V, kRing>(), kBytes = V::kLayout.bytes();

  __device__ int32_t find(int block) const { return block < end_ ? table_[block] : 0; }
  __device__ void copy(int slot, int32_t id) const {
    if (!kRing) return;
    const int own = 16 * static_cast<int>(threadIdx.x % 32), bytes = V::kExact ? kBytes : static_cast<int>(args_.bytes);
    const char* const from = sketches_ + own + id * stride_;
    const uint32_t to = shared_address(slots_ + slot) + own;
#pragma unroll
    for (int at = 0; at < kBytes; at += 512) {
      if (own + at < bytes) copy_async(to + at, from + at, true);
    }
  }

  const ScanArguments& args_;
  const char* sketches_;
  int64_t stride_;
  const int32_t* table_;
  int first_, step_, end_;
  char* slots_;
  int32_t ids_[kLength];  // of the first blocks
};

/// Where the keys of the block still filling are, and how many.
struct FillingBlock {
  const std::byte* rows = nullptr;
  int row_bytes = 0;
  KvType type;
  int count = 0;

  __device__ FillingBlock(const ScanScoresArgs& args, const DeviceRow& row, int kv_head) : type(args.type) {
    count = row.context % kBlockTokens;
    if (count == 0) return;
    const int64_t tile = static_cast<int64_t>(row.table[row.context / kBlockTokens]) * args.tiles.kv_heads + kv_head;
    row_bytes = args.row_bytes;
    rows = args.kv + tile * args.tile_stride;
  }

  /// Has them on their way to the L2: all but this pass's are there already. With 8 bits whole rows, whose scales are
  /// at their ends.
  __device__ void fetch(int dim) const {
    const int position = threadIdx.x / 4, bytes = type == KvType::Q8 ? row_bytes : 2 * dim;
    if (position >= count) return;
    const std::byte* const key = rows + position * row_bytes;
    for (int i = 128 * (threadIdx.x % 4); i < bytes; i += 4 * 128) prefetch(key + i);
  }

  /// Eight elements of a key, from channel d on, a multiple of 8.
  __device__ void read(int position, int dim, int d, float4& low, float4& high) const {
    const std::byte* const row = rows + position * row_bytes;
    if (type == KvType::Bf16) {
      const uint4 eight = *reinterpret_cast<const uint4*>(row + 2 * d);
      low = widen({eight.x, eight.y}), high = widen({eight.z, eight.w});
      return;
    }
    const uint2 codes = *reinterpret_cast<const uint2*>(row + d);
    const float scale = __half2float(*reinterpret_cast<const __half*>(row + 2 * dim + d / kKvScaleBlock * 2));
    const auto value = [&](uint32_t four, int index) {
      return __fmul_rn(scale, static_cast<float>(static_cast<int8_t>(four >> 8 * index)));
    };
    low = {value(codes.x, 0), value(codes.x, 1), value(codes.x, 2), value(codes.x, 3)};
    high = {value(codes.y, 0), value(codes.y, 1), value(codes.y, 2), value(codes.y, 3)};
  }
};

/// The queries of a tile of heads; zeros behind the last.
template <class V>
__device__ inline void load_queries(const ScanArguments& args, int row, int first_head, int heads, float* q) {
  const int dim = V::dim(args), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* const query = args.of.q + (static_cast<int64_t>(row) * args.of.tiles.heads + first_head) * dim;
  for (int h = warp; h < V::kHeads; h += kScanWarps) {
    for (int d = 4 * lane; d < dim; d += 4 * 32) {
      const float4 none = {0, 0, 0, 0};
      *reinterpret_cast<float4*>(q + h * V::kQueryStride + d) =
          h < heads ? *reinterpret_cast<const float4*>(query + h * dim + d) : none;
    }
  }
}

/// What a warp keeps of the scores of a tile of heads. Lane (g = lane / 4, t = lane % 4) has heads 2t and 2t + 1.
template <class V>
struct ScoreKeeper {
  static constexpr int kOwn = V::kHeads == 1 ? 1 : 2;

  float* scores;   ///< of head 2t
  int64_t stride;  ///< to the next head's
  float* to;       ///< where the next block's scores of head 2t belong, of position 2g on
  int step;        ///< positions from one block to the next
  int heads;
  bool sums;  ///< whether anybody asks for those of the softmax
  float scale;
  float cap;  ///< of scores; 0: none
  RunningSoftmax softmax[2];

  __device__ void add_block(float (&score)[2][2 * kStripes]) {
    const int t = threadIdx.x % 4;
    if (cap != 0) {
#pragma unroll
      for (int h = 0; h < kOwn; ++h) {
#pragma unroll
        for (float& one : score[h]) one = soft_capped(one, cap);
      }
    }
#pragma unroll
    for (int h = 0; h < kOwn; ++h) {
      if (2 * t + h < heads) {
#pragma unroll
        for (int s = 0; s < kStripes; ++s) {
          *reinterpret_cast<float2*>(to + h * stride + 16 * s) = {score[h][2 * s], score[h][2 * s + 1]};
        }
      }
      add(softmax[h], score[h]);
    }
    to += step;
  }

  /// Scores of the block still filling, from its keys: 8 positions a warp, 4 lanes each.
  __device__ void add_keys(const FillingBlock& filling, int dim, int context, const float* q) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, position = 8 * warp + g;
    const int key = min(position, filling.count - 1);
    float products[V::kHeads] = {};
    for (int d = 8 * t; d < dim; d += 32) {
      float4 low, high;
      filling.read(key, dim, d, low, high);
#pragma unroll
      for (int h = 0; h < V::kHeads; ++h) {
        const float4 first = *reinterpret_cast<const float4*>(q + h * V::kQueryStride + d);
        const float4 second = *reinterpret_cast<const float4*>(q + h * V::kQueryStride + d + 4);
        float sum = products[h];
        sum = __fmaf_rn(first.x, low.x, sum), sum = __fmaf_rn(first.y, low.y, sum);
        sum = __fmaf_rn(first.z, low.z, sum), sum = __fmaf_rn(first.w, low.w, sum);
        sum = __fmaf_rn(second.x, high.x, sum), sum = __fmaf_rn(second.y, high.y, sum);
        sum = __fmaf_rn(second.z, high.z, sum), sum = __fmaf_rn(second.w, high.w, sum);
        products[h] = sum;
      }
    }
    float score[2] = {};
#pragma unroll
    for (int h = 0; h < V::kHeads; ++h) {
      products[h] = __fadd_rn(products[h], __shfl_xor_sync(0xffffffffu, products[h], 1));
      products[h] = __fadd_rn(products[h], __shfl_xor_sync(0xffffffffu, products[h], 2));
      if (h / 2 == t) score[h % 2] = products[h];
    }
#pragma unroll
    for (int h = 0; h < kOwn; ++h) {
      if (position >= filling.count || 2 * t + h >= heads) continue;
      if (cap != 0) score[h] = soft_capped(score[h], cap);
      scores[h * stride + context / kBlockTokens * kBlockTokens + position] = score[h];
      const float one[1] = {score[h]};
      add(softmax[h], one);
    }
  }

  /// The CTA's part of the statistics, all warps' together: of head h in thread 8h. All threads call it.
  __device__ SoftmaxPart part(SoftmaxPart (&of_warps)[kScanWarps][kTileHeads]) {
    static_assert(kScanWarps == 8 && kTileHeads == 8);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h < kOwn) softmax[h].template add_lanes<4, 32>(scale);
      if (lane < 4) of_warps[warp][2 * lane + h] = {softmax[h].maximum, softmax[h].sum};
    }
    __syncthreads();
    if (threadIdx.x >= kScanWarps * kTileHeads) return {};
    const SoftmaxPart own = of_warps[threadIdx.x % kScanWarps][threadIdx.x / kScanWarps];
    RunningSoftmax whole{own.maximum, own.sum};
    whole.add_lanes<1, kScanWarps>(scale);
    return {whole.maximum, whole.sum};
  }

 private:
  template <int kCount>
  __device__ void add(RunningSoftmax& to, const float (&score)[kCount]) const {
    if (sums) {
      to.add(score, scale);
    } else {
      to.add_maximum(score);
    }
  }
};

/// Scores all blocks of a ring. q: load_queries(), of `heads`; `memory` of this warp.
template <class V, bool kRing>
__device__ inline void score_blocks(const ScanArguments& args, BlockRing<V, kRing>& ring, const float* q, int heads,
                                    ScanMemory<V>& memory, ScoreKeeper<V>& keeper) {
  ring.run([&](Sketch<V> sketch) {
    weigh(args, sketch, q, heads, memory);
    float score[2][2 * kStripes];
    score_block(args, sketch, memory, score);
    __syncwarp();
    keeper.add_block(score);
  });
}

}  // namespace tidal::cuda
