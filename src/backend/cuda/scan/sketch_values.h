// The sketches of values that completions read, of whole blocks, and which blocks those are.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/batch.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// Which blocks are sketched: listed ones, those that are full with the row of a slot, or those that chunks of a batch
/// fill.
struct SketchedBlocks {
  const BlockId* listed = nullptr;
  const int64_t* slots = nullptr;
  StepTables tables = {};
  int first_chunk = 0;

#ifdef __CUDACC__
  /// The block of this CTA, or -1.
  __device__ int64_t own_block() const {
    if (listed) return listed[blockIdx.x];
    if (slots) {
      const int64_t slot = slots[blockIdx.x];
      return slot >= 0 && slot % kBlockTokens == kBlockTokens - 1 ? slot / kBlockTokens : -1;
    }
    const DeviceChunk& chunk = tables.chunks[first_chunk + blockIdx.z];
    const int end = min((chunk.position + chunk.rows + kBlockTokens - 1) / kBlockTokens, chunk.cached / kBlockTokens);
    const int block = chunk.position / kBlockTokens + static_cast<int>(blockIdx.x);
    return block < end ? tables.blocks[chunk.table + block] : -1;
  }
#endif
};

/// Writes the sketches of values that `kv` keeps, of grid (blocks, KV heads, chunks); none where nothing is kept.
void launch_value_sketches(const KvLayer& kv, const SketchedBlocks& blocks, dim3 grid, cudaStream_t stream);

}  // namespace tidal::cuda
