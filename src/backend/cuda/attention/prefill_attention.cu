// FlashAttention-2 over 64-token blocks of the pool: a CTA takes 64 or 128 query rows of one head, each of its four
// warps 16 or 32 of them, and walks over the blocks up to the diagonal. K and V of a block and head are one contiguous
// run of memory; it comes by cp.async, one block ahead. Rows in shared memory are padded by 16 bytes: their length in
// 16-byte pieces is then odd, so that the eight rows of an ldmatrix lie in eight different groups of banks.
//
// Where a device's shared memory is too small for that, tiles are half a block. Heads of 512 are too large for both: a
// CTA has half of the output's channels, by half a block at a time, and two of them make the same scores.
#include <cmath>
#include <string>

#include "backend/cuda/attention/prefill_tiles.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

using namespace prefill;

__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}
__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

/// c += a b for a [16 x 16], b [16 x 8].
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// cap * tanh(x / cap), as cap * (1 - 2 / (1 + e^(2 |x| / cap))) with x's sign; cap_scale: log2(e) * 2 / cap.
__device__ inline float capped(float x, float cap, float cap_scale) {
  const float power = exp2_fast(fabsf(x) * cap_scale);
  return copysignf(fmaf(-2.0f * cap, __fdividef(1.0f, 1.0f + power), cap), x);
}

/// Over the four lanes that hold one row.
__device__ inline float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ inline float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/// Of a warp: scores, and softmax weights as the operand of the product with V.
template <typename S>
using Scores = float[S::kRowTiles][S::kKeys / 8][4];
template <typename S>
using Weights = uint32_t[S::kRowTiles][S::kKeys / 16][4];

/// s [16 * kRowTiles x kKeys] = q k^T.
template <typename S>
__device__ inline void scores(uint32_t queries, uint32_t keys, Scores<S>& s) {
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kKeys / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < S::kDim; k += 16) {
    uint32_t a[S::kRowTiles][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) load_matrices(a[m], queries + 2 * (16 * m * S::kQueryStride + k));
#pragma unroll
    for (int n = 0; n < S::kKeys / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, keys + 2 * (16 * n * S::kStride + k));
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        multiply(s[m][2 * n], a[m], b[0], b[1]);
        multiply(s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// out [16 * kRowTiles x kOut] += p v, with p = the softmax weights.
template <typename S>
__device__ inline void add_values(const Weights<S>& p, uint32_t values, float (&out)[S::kRowTiles][S::kOut / 8][4]) {
#pragma unroll
  for (int k = 0; k < S::kKeys / 16; ++k) {
#pragma unroll
    for (int d = 0; d < S::kOut / 16; ++d) {
      uint32_t b[4];
      load_transposed(b, values + 2 * (16 * k * S::kStride + 16 * d));
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        multiply(out[m][2 * d], p[m][k], b[0], b[1]);
        multiply(out[m][2 * d + 1], p[m][k], b[2], b[3]);
      }
    }
  }
}

/// The scores behind a row's own position, and `window` or more before it, become -infinity. `row`: position of the
/// lane's first row, `key`: of its first column.
template <int kRowTiles, int kColumns>
__device__ inline void mask(int row, int key, int window, float (&s)[kRowTiles][kColumns][4]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int behind = key + 8 * n + (e & 1) - (row + 16 * m + 8 * (e >> 1));
        if (behind > 0 || behind <= -window) s[m][n][e] = -INFINITY;
      }
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, S::kCtas)
    prefill_attention(PrefillAttentionParams p, float scale, float cap_scale) {
  constexpr bool kRaw = S::kType == KvType::Q8;
  constexpr int kDim = S::kDim, kRowTiles = S::kRowTiles, kKeys = S::kKeys, kOut = S::kOut;
  extern __shared__ __align__(16) __nv_bfloat16 shared[];
  __nv_bfloat16* const queries = shared;
  __nv_bfloat16* const first_stage = shared + S::kRows * S::kQueryStride;
  char* const raw = reinterpret_cast<char*>(first_stage + S::kStage);  // with 8 bits
  const uint32_t stages = shared_address(first_stage);

  // The last rows have the longest way and start first; the heads of a group are neighbours and share blocks in L2.
  const int group = p.heads / p.kv_heads, row_tiles = (p.rows + S::kRows - 1) / S::kRows;
  const int kv_head = blockIdx.x / (group * row_tiles);
  const int head = kv_head * group + blockIdx.x % group;
  const int first = (row_tiles - 1 - blockIdx.x / group % row_tiles) * S::kRows;
  const int last = min(first + S::kRows, p.rows) - 1;
  const int tiles = (p.position + last) / kKeys + 1;
  const int context = p.position + p.rows;
  const int window = p.window > 0 ? p.window : context;  // all is seen
  const int seen = max(0, p.position + first - window + 1), first_tile = seen / kKeys;

  constexpr int kOfBlock = kBlockTokens / kKeys;  // tiles
  const std::byte* const own = p.kv + kv_head * int64_t{kOfBlock * S::kRawBytes};
  const int64_t block_bytes = p.kv_heads * int64_t{kOfBlock * S::kRawBytes};
  const int part = S::kParts > 1 ? static_cast<int>(blockIdx.y) : 0;
  const auto load = [&](int tile, int64_t block, int unseen) {
    const std::byte* const from = own + block * block_bytes + (kOfBlock > 1 ? tile % kOfBlock * S::kRawBytes : 0);
    if constexpr (kRaw) {
      load_raw<S>(from, unseen, context - tile * kKeys, shared_address(raw + tile % S::kRawStages * S::kRawBytes));
    } else {
      load_tile<S>(from, part, unseen, context - tile * kKeys, stages + tile % 2 * 2 * S::kStage);
    }
  };
  load(first_tile, p.blocks[first_tile / kOfBlock], seen - first_tile * kKeys);
  int next = tiles > first_tile + 1 ? p.blocks[(first_tile + 1) / kOfBlock] : 0;
  load_queries<S>(p, first, head, queries);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp * 16 * kRowTiles;
  const int warp_first = p.position + first + warp_row, warp_last = warp_first + 16 * kRowTiles - 1;
  // What an ldmatrix of this lane points to: rows of q; keys, two tiles of 8; tokens of v.
  const uint32_t my_queries = shared_address(queries + (warp_row + lane % 16) * S::kQueryStride + lane / 16 * 8);
  const uint32_t my_keys = 2 * ((lane % 8 + lane / 16 * 8) * S::kStride + lane / 8 % 2 * 8);
  const uint32_t my_values = 2 * (lane % 16 * S::kStride + kDim + lane / 16 * 8);

  float out[kRowTiles][kOut / 8][4] = {};
  float top[kRowTiles][2], sum[kRowTiles][2];  // of rows lane / 4 and lane / 4 + 8; sums of this lane's columns only
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    top[m][0] = top[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = 0.0f;
  }

  for (int tile = first_tile; tile < tiles; ++tile) {
    wait_copies();
    __syncthreads();  // the block is there for all, and all are done with the other stage
    const uint32_t stage = kRaw ? stages : stages + tile % 2 * 2 * S::kStage;
    const auto load_next = [&] {
      if (tile + 1 >= tiles) return;
      load(tile + 1, next, 0);
      next = tile + 2 < tiles ? p.blocks[(tile + 2) / kOfBlock] : 0;
    };
    if constexpr (S::kRawStages != 1) load_next();
    if constexpr (kRaw) {
      widen_block<S>(raw + tile % S::kRawStages * S::kRawBytes, first_stage);
      __syncthreads();  // all have the block of bf16, and none reads the other any more
    }
    if constexpr (S::kRawStages == 1) load_next();
    if (tile * kKeys > warp_last || tile * kKeys + kKeys - 1 <= warp_first - window) continue;

    Scores<S> s;
    scores<S>(my_queries, stage + my_keys, s);
    if (p.cap != 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (float& one : s[m][n]) one = capped(one, p.cap, cap_scale);
        }
      }
    }
    if (tile * kKeys + kKeys - 1 > warp_first || tile * kKeys <= warp_last - window) {
      mask(warp_first + lane / 4, tile * kKeys + lane % 4 * 2, window, s);
    }

    Weights<S> weights;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float factor[2];
      bool higher = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float now = top[m][half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) now = fmaxf(now, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        now = row_max(now);
        // Where everything so far is -infinity, weights are 0 and not the difference of infinities.
        const float offset = now == -INFINITY ? 0.0f : now * scale;
        factor[half] = exp2_fast(fmaf(top[m][half], scale, -offset));
        higher |= now != top[m][half];
        top[m][half] = now;
        float own_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          const float a = exp2_fast(fmaf(s[m][n][2 * half], scale, -offset));
          const float b = exp2_fast(fmaf(s[m][n][2 * half + 1], scale, -offset));
          own_sum += a + b;
          weights[m][n / 2][n % 2 * 2 + half] = bf16_pair(a, b);
        }
        sum[m][half] = fmaf(sum[m][half], factor[half], own_sum);
      }
      // The factors of rows whose maximum stays are 1.
      if (!__any_sync(0xffffffffu, higher)) continue;
#pragma unroll
      for (int d = 0; d < kOut / 8; ++d) {
        out[m][d][0] *= factor[0];
        out[m][d][1] *= factor[0];
        out[m][d][2] *= factor[1];
        out[m][d][3] *= factor[1];
      }
    }
    add_values<S>(weights, stage + my_values, out);
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + warp_row + 16 * m + 8 * half + lane / 4;
      float total = row_sum(sum[m][half]);
      if (p.sink_logits)
        total += exp2_fast(fmaf(__ldg(p.sink_logits + head), 1.4426950408889634f, -top[m][half] * scale));
      if (row >= p.rows) continue;
      const float share = 1.0f / total;
      float* const to = p.out + (static_cast<int64_t>(row) * p.heads + head) * kDim + part * kOut + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < kOut / 8; ++d) {
        *reinterpret_cast<float2*>(to + 8 * d) =
            make_float2(out[m][d][2 * half] * share, out[m][d][2 * half + 1] * share);
      }
    }
  }
}

template <typename S>
void launch_sizes(const PrefillAttentionParams& p, cudaStream_t stream) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(prefill_attention<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  check(allowed, "prefill attention");
  const int row_tiles = (p.rows + S::kRows - 1) / S::kRows;
  const float scale = static_cast<float>(1.4426950408889634 / sqrt(static_cast<double>(S::kDim)));  // of exp2
  const float cap_scale = p.cap != 0 ? 2.885390081777927f / p.cap : 0.0f;                           // log2(e) * 2 / cap
  prefill_attention<S>
      <<<dim3(row_tiles * p.heads, S::kParts), kThreads, S::kSharedBytes, stream>>>(p, scale, cap_scale);
  check_launch("prefill attention");
}

template <int kDim, KvType kType>
void launch_with(const PrefillAttentionParams& p, cudaStream_t stream) {
  using S = Sizes<kDim, kType>;
  if constexpr (S::kSharedBytes > kLeastSharedMemory && kDim <= 256) {
    const int memory = p.shared_memory > 0 ? p.shared_memory : shared_memory_limit();
    if (memory < S::kSharedBytes) return launch_sizes<Sizes<kDim, kType, true>>(p, stream);
  }
  launch_sizes<S>(p, stream);
}

template <int kDim>
void launch(const PrefillAttentionParams& p, cudaStream_t stream) {
  if (p.type == KvType::Q8) {
    if constexpr (kDim <= 256) return launch_with<kDim, KvType::Q8>(p, stream);
    fail_with("cuda: heads of " + std::to_string(kDim) +
              " elements in a cache of 8 bits are not supported, expected bf16");
  }
  launch_with<kDim, KvType::Bf16>(p, stream);
}

}  // namespace

void launch_prefill_attention(const PrefillAttentionParams& params, cudaStream_t stream) {
  switch (params.head_dim) {
    case 16: return launch<16>(params, stream);
    case 32: return launch<32>(params, stream);
    case 48: return launch<48>(params, stream);
    case 64: return launch<64>(params, stream);
    case 80: return launch<80>(params, stream);
    case 96: return launch<96>(params, stream);
    case 112: return launch<112>(params, stream);
    case 128: return launch<128>(params, stream);
    case 160: return launch<160>(params, stream);
    case 192: return launch<192>(params, stream);
    case 256: return launch<256>(params, stream);
    case 512: return launch<512>(params, stream);
    default: {
      std::string message = "cuda: heads of ";
      message += std::to_string(params.head_dim);
      message += " elements have no attention kernel, expected 16 to 128 in steps of 16, 160, 192, 256 or 512";
      fail_with(message);
    }
  }
}

}  // namespace tidal::cuda
