// Dense causal attention of one long chunk over the paged cache.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/kv_row.h"

namespace tidal::cuda {

struct PrefillAttentionParams {
  const float* q = nullptr;         ///< [rows, heads * head_dim], the chunk's; rounded to bf16
  const std::byte* kv = nullptr;    ///< KvLayer::data, with the rows of `rows`
  KvType type = KvType::Bf16;       ///< KvLayer::type
  const int32_t* blocks = nullptr;  ///< [blocks of position + rows positions], device memory: the chunk's block table
  float* out = nullptr;             ///< [rows, heads * head_dim], written
  int rows = 0;
  int position = 0;                    ///< of the first row: row r attends to positions up to position + r
  int window = 0;                      ///< the last so many of them; 0: all
  const float* sink_logits = nullptr;  ///< [heads], one more score of each softmax, of no value; optional
  float cap = 0;                       ///< Hyperparameters::product_cap(); 0: none
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;       ///< a multiple of 16 up to 256, or 512
  int shared_memory = 0;  ///< that a block may take; 0: what the device has, kLeastSharedMemory at least
};

/// Softmax weights are rounded to bf16, as are K and V in 8 bits, everything else is float32. A row's result does not
/// depend on other rows. Throws Error for a head size that there is no kernel for.
void launch_prefill_attention(const PrefillAttentionParams& params, cudaStream_t stream);

}  // namespace tidal::cuda
