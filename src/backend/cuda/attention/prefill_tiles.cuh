// Prefill attention: sizes, and how queries and tiles of K and V come to shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention/prefill_attention.h"
#include "backend/cuda/runtime/bf16_pair.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/sketch.h"

namespace tidal::cuda::prefill {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kPad = 8;    // elements
constexpr int kPiece = 8;  // elements of 16 bytes

/// Sizes for one head size and type of cache. Wide heads leave registers for 16 rows of the output in a warp only.
/// kNarrow: half a block at a time, so that kLeastSharedMemory has room for it.
template <int kHeadDim, KvType kCacheType, bool kNarrow = false>
struct Sizes {
  static constexpr int kDim = kHeadDim;
  static constexpr KvType kType = kCacheType;
  static constexpr int kMemory = kNarrow ? kLeastSharedMemory : kWideHeadMemory;
  static constexpr int kRowTiles = kDim <= 128 ? 2 : 1;  // of 16 rows, in a warp
  static constexpr int kRows = 16 * kRowTiles * kWarps;
  static constexpr int kKeys = kDim <= 256 && !kNarrow ? kBlockTokens : kBlockTokens / 2;  // of a tile
  static constexpr int kOut = kDim <= 256 ? kDim : kDim / 2;                               // channels of V, of a CTA
  static constexpr int kParts = kDim / kOut;  // CTAs that share a row and head
  static constexpr int kQueryStride = kDim + kPad;
  static constexpr int kStride = kDim + kOut + kPad;  // of a row [K | V]
  static constexpr int kStage = kKeys * kStride;
  // Of bf16 a block that is worked on and the one behind; of 8 bits these as they are, and one block made of them.
  static constexpr int kRowBytes = KvRowLayout{kType, kDim}.bytes(), kRawBytes = kKeys * kRowBytes;
  static constexpr int kScales = KvRowLayout{kType, kDim}.scales();  // of K, and of V
  static constexpr int kStages = kType == KvType::Q8 ? 1 : 2;
  static constexpr int kWideBytes = 2 * (kRows * kQueryStride + kStages * kStage);
  // Where two do not fit, the next one is asked for when the one before has been widened.
  static constexpr int kRawStages = kType != KvType::Q8 ? 0 : kWideBytes + 2 * kRawBytes <= kMemory ? 2 : 1;
  static constexpr int kSharedBytes = kWideBytes + kRawStages * kRawBytes;
  static constexpr int kCtas = kDim <= 128 ? 2 : 1;  // on one multiprocessor
  static_assert(kSharedBytes <= kMemory);
};

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes to shared memory, or zeros. `from` must be valid in either case.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::); }
__device__ inline void wait_copies() { asm volatile("cp.async.wait_group 0;\n" ::: "memory"); }

/// Queries [kRows, kDim] as bf16 into shared memory; zeros behind the chunk's end.
template <typename S>
__device__ inline void load_queries(const PrefillAttentionParams& p, int first, int head, __nv_bfloat16* to) {
  constexpr int kPieces = S::kDim / kPiece;
  for (int i = threadIdx.x; i < S::kRows * kPieces; i += kThreads) {
    const int row = i / kPieces, at = i % kPieces * kPiece;
    uint4 packed = {0, 0, 0, 0};
    if (first + row < p.rows) {
      const float4* from =
          reinterpret_cast<const float4*>(p.q + (static_cast<int64_t>(first + row) * p.heads + head) * S::kDim + at);
      const float4 a = from[0], b = from[1];
      packed = {bf16_pair(a.x, a.y), bf16_pair(a.z, a.w), bf16_pair(b.x, b.y), bf16_pair(b.z, b.w)};
    }
    *reinterpret_cast<uint4*>(to + row * S::kQueryStride + at) = packed;
  }
}

/// Starts to load rows [unseen, valid) of a tile, [K | part of V]; zeros in place of the others, where the pool may
/// hold anything.
template <typename S>
__device__ inline void load_tile(const std::byte* tile, int part, int unseen, int valid, uint32_t to) {
  const auto* from = reinterpret_cast<const Bf16*>(tile);
  constexpr unsigned kPieces = (S::kDim + S::kOut) / kPiece;  // of a row
  constexpr unsigned kCopies = S::kKeys * kPieces / kThreads;
  if constexpr (S::kParts > 1) {
#pragma unroll
    for (unsigned i = 0; i < kCopies; ++i) {
      const unsigned piece = i * kThreads + threadIdx.x, row = piece / kPieces, at = piece % kPieces * kPiece;
      const unsigned skipped = at < S::kDim ? 0 : part * S::kOut;
      copy_async(to + 2 * (row * S::kStride + at), from + row * 2 * S::kDim + at + skipped,
                 static_cast<int>(row) >= unseen && static_cast<int>(row) < valid);
    }
  } else if constexpr (kThreads % kPieces == 0) {
    // Whole rows at a time: one address and constant distances.
    constexpr unsigned kStep = kThreads / kPieces;
    const unsigned row = threadIdx.x / kPieces;
    to += 2 * (row * S::kStride + threadIdx.x % kPieces * kPiece);
    from += threadIdx.x * kPiece;
#pragma unroll
    for (unsigned i = 0; i < kCopies; ++i) {
      const int at = static_cast<int>(row + i * kStep);
      copy_async(to + 2 * i * kStep * S::kStride, from + i * kThreads * kPiece, at >= unseen && at < valid);
    }
  } else {
#pragma unroll
    for (unsigned i = 0; i < kCopies; ++i) {
      const unsigned piece = i * kThreads + threadIdx.x, row = piece / kPieces;
      copy_async(to + 2 * (row * S::kStride + piece % kPieces * kPiece), from + piece * kPiece,
                 static_cast<int>(row) >= unseen && static_cast<int>(row) < valid);
    }
  }
  commit_copies();
}

/// The same of a block of 8 bits, as it is.
template <typename S>
__device__ inline void load_raw(const std::byte* from, int unseen, int valid, uint32_t to) {
  constexpr int kPieces = S::kRowBytes / 16, kAll = S::kKeys * kPieces;
#pragma unroll
  for (int i = 0; i < (kAll + kThreads - 1) / kThreads; ++i) {
    const int piece = i * kThreads + static_cast<int>(threadIdx.x), row = piece / kPieces;
    if (piece < kAll) copy_async(to + 16 * piece, from + 16 * piece, row >= unseen && row < valid);
  }
  commit_copies();
}

/// A block of 8 bits as load_tile() has one of bf16. All threads call it, with barriers on either side.
template <typename S>
__device__ inline void widen_block(const char* raw, __nv_bfloat16* to) {
  constexpr int kPieces = 2 * S::kDim / kPiece;  // of 8 elements, of a row
#pragma unroll 4
  for (int piece = threadIdx.x; piece < S::kKeys * kPieces; piece += kThreads) {
    const int row = piece / kPieces, at = piece % kPieces * kPiece;
    const char* const own = raw + row * S::kRowBytes;
    const int block = at < S::kDim ? at / kKvScaleBlock : S::kScales + (at - S::kDim) / kKvScaleBlock;
    const float scale = __half2float(*reinterpret_cast<const __half*>(own + 2 * S::kDim + 2 * block));
    const uint2 codes = *reinterpret_cast<const uint2*>(own + at);
    // With its sign turned a code is 128 more, the lowest byte of 2^23 + that.
    const uint32_t words[2] = {codes.x ^ 0x80808080u, codes.y ^ 0x80808080u};
    float values[kPiece];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const float sum = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7650 | i % 4));
      values[i] = __fmul_rn(scale, __fsub_rn(sum, 8388736.0f));
    }
    *reinterpret_cast<uint4*>(to + row * S::kStride + at) = {
        bf16_pair(values[0], values[1]), bf16_pair(values[2], values[3]), bf16_pair(values[4], values[5]),
        bf16_pair(values[6], values[7])};
  }
}

}  // namespace tidal::cuda::prefill
