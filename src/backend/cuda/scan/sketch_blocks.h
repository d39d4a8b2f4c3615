// The sketches that Scan layers read, made of the keys of whole blocks.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// Writes every sketch that `kv` keeps of the listed blocks. blocks: [count], device memory. One launch.
void launch_sketch_blocks(const KvLayer& kv, const BlockId* blocks, int count, cudaStream_t stream);
/// The same for the blocks that chunks [first_chunk, first_chunk + chunks) of the batch fill (Chunk::first_full() to
/// end_full(), read on the device). most_rows: of the longest of them. One launch; none where nothing is kept.
void launch_sketch_filled(const KvLayer& kv, const StepTables& tables, int first_chunk, int chunks, int most_rows,
                          cudaStream_t stream);

}  // namespace tidal::cuda
