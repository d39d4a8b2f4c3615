// What the kernels of recurrent layers share.
#pragma once

#include <cstdint>

#include "backend/cuda/delta/delta.h"
#include "backend/cuda/products/row_norm.cuh"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {

/// DeltaNet's, for kernels.
struct DeltaSizes {
  int dim, key_heads, value_heads, key_width, value_width, mixed_width, taps;
  int64_t tail;
  bool neighbours;

  explicit DeltaSizes(const DeltaNet& net)
      : dim(net.head_dim),
        key_heads(net.key_heads),
        value_heads(net.value_heads),
        key_width(net.key_width()),
        value_width(net.value_width()),
        mixed_width(net.mixed_width()),
        taps(net.taps),
        tail(net.tail_elements()),
        neighbours(net.neighbours) {}
  __device__ int key_head(int value_head) const {
    return neighbours ? value_head / (value_heads / key_heads) : value_head % key_heads;
  }
};

/// Whether the sequence begins with this chunk: what is in its state counts as zeros.
__device__ inline bool begins(const DeviceChunk& chunk) { return chunk.position == 0; }

__device__ inline float silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x))); }

/// log(a) of a row and value head.
__device__ inline float log_kept(float alpha, float bias, float decay) {
  const float sum = __fadd_rn(alpha, bias);
  return __fmul_rn(decay, __fadd_rn(fmaxf(sum, 0.0f), log1pf(expf(-fabsf(sum)))));
}
/// a. Near to 1, as it is where S lasts for thousands of rows, rounded but once: expf has an error of its own.
__device__ inline float kept_share(float log) { return log > -0.5f ? __fadd_rn(1.0f, expm1f(log)) : expf(log); }
/// b.
__device__ inline float written_share(float beta) { return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-beta))); }

/// What a head's query or key is multiplied by: 1 / its length, and a query's share of 1 / sqrt(head_dim).
__device__ inline float unit_factor(float squares, float epsilon, bool query, int dim) {
  const float factor = 1.0f / sqrtf(__fadd_rn(squares, epsilon));
  return query ? __fmul_rn(factor, 1.0f / sqrtf(static_cast<float>(dim))) : factor;
}

/// A value head's reading, normed and gated.
__device__ inline float gated(float read, float factor, float weight, float gate) {
  return read * factor * weight * silu(gate);
}

/// Writes what the convolution is going to have seen behind the chunk, for the next pass. By `threads` threads, each
/// its channels: what one reads it has not written yet.
__device__ inline void keep_tail(const DeltaParams& p, const DeltaSizes& net, const DeviceChunk& chunk, float* tail,
                                 int thread, int threads) {
  const int before = net.taps - 1, width = net.mixed_width;
  for (int c = thread; c < width; c += threads) {
    for (int t = 0; t < before; ++t) {
      const int from = chunk.rows + t - before;
      float value = 0;
      if (from >= 0) {
        value = __ldcg(p.mixed + static_cast<int64_t>(chunk.first_row + from) * width + c);
      } else if (!begins(chunk)) {
        value = tail[static_cast<int64_t>(from + before) * width + c];
      }
      tail[static_cast<int64_t>(t) * width + c] = value;
    }
  }
}

}  // namespace tidal::cuda
