// The sketches that Scan layers read, made of the keys of whole blocks.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/batch.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// Writes every sketch that `kv` keeps of the listed blocks. blocks: [count], device memory. One launch.
void launch_sketch_blocks(const KvLayer& kv, const BlockId* blocks, int count, cudaStream_t stream);
/// The same of the blocks whose last row is among `slots` [count] (block * 64 + place; below 0: none), device memory.
void launch_sketch_slots(const KvLayer& kv, const int64_t* slots, int count, cudaStream_t stream);
/// The same for the blocks that chunks [first_chunk, first_chunk + chunks) of the batch fill (Chunk::first_full() to
/// end_full(), read on the device). most_rows: of the longest of them. One launch; none where nothing is kept.
void launch_sketch_filled(const KvLayer& kv, const StepTables& tables, int first_chunk, int chunks, int most_rows,
                          cudaStream_t stream);

}  // namespace tidal::cuda
