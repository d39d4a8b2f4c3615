// A batch as kernels see it: tables in device memory, at addresses that never change, so that CUDA graphs stay valid.
#pragma once

#include <cstdint>

namespace tidal::cuda {

/// Rows of a chunk of at most this many are decode rows: computed by the arithmetic of a decode step, bit for bit the
/// same whatever else is in the batch. They come first in a batch.
inline constexpr int kDecodeRows = 8;

/// One chunk of the batch (backend/batch.h, Chunk).
struct DeviceChunk {
  float* state;       ///< Chunk::state
  int32_t first_row;  ///< its first row in the batch
  int32_t rows;       ///< >= 1
  int32_t position;   ///< of its first token; its last row attends to position + rows positions
  int32_t cached;     ///< positions of the sequence in the cache after the pass
  int32_t table;      ///< its block table starts at StepTables::blocks + table and covers position + rows positions
  // The policy in numbers at this context, not yet scan_policy(); 0 in chunks that are not sparse.
  int32_t budget;
  int32_t sinks;
  int32_t recent;
  float top_p;

  bool operator==(const DeviceChunk&) const = default;
};

/// Device pointers, passed to kernels by value. Uploaded at the start of a pass, by one copy, and one more where some
/// blocks are in host memory.
struct StepTables {
  const int32_t* tokens;      ///< [rows]
  const int32_t* positions;   ///< [rows]
  const int32_t* row_chunk;   ///< [rows], the chunk of every row
  const int32_t* blocks;      ///< the chunks' block tables, one after the other; their entries are slots
  const DeviceChunk* chunks;  ///< [chunks]
  const int32_t* logit_rows;  ///< [logit rows], ascending
  // Where some chunk has blocks in host memory; null: none has.
  const uint32_t* generations;  ///< Chunk::generations, of the entries of `blocks`; of those on the device anything
  const uint32_t* step;         ///< a number that grows with every pass, from 1 on

  bool operator==(const StepTables&) const = default;
};

}  // namespace tidal::cuda
