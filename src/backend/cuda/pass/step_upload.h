// The host's side of step_tables.h.
#pragma once

#include <span>

#include "backend/batch.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// Pinned memory in which a batch's tables are made, and their place on the device. The tables lie one behind the
/// other, the chunks' block tables last, so their addresses follow from the numbers of rows, chunks and logit rows.
class StepUpload {
 public:
  /// Bytes on the device for passes of up to `max_rows` rows over up to `max_context` positions, of models with layers
  /// that have a window or without.
  static size_t bytes(int max_rows, int max_context, bool windows);
  /// Makes room. Addresses may change.
  void reserve(int max_rows, int max_context, bool windows);

  /// Makes the tables of `batch` and starts their copy.
  void begin(const Batch& batch, cudaStream_t stream);
  /// Whether the policies of `batch`, which has begin()'s chunks otherwise, are those of the tables.
  bool has_policies(const Batch& batch) const;
  /// Copies the tables again, with these policies.
  void set_policies(const Batch& batch, cudaStream_t stream);

  const StepTables& tables() const { return tables_; }
  /// The same with Chunk::window_blocks in place of Chunk::blocks, where chunks have them.
  const StepTables& window_tables() const { return window_tables_; }
  /// A chunk's block table in host memory, of all layers but those that are windowed.
  std::span<const int32_t> host_blocks(int chunk) const {
    const DeviceChunk& of = chunks_[chunk];
    return {pinned_blocks_ + of.table, static_cast<size_t>(blocks_for(of.position + of.rows))};
  }
  /// Where the block table of a chunk starts, device memory.
  const int32_t* blocks(int chunk, bool windowed) const {
    return tables_.blocks + (windowed && window_chunks_ ? window_chunks_ : chunks_)[chunk].table;
  }

 private:
  void copy(cudaStream_t stream);
  /// The number of the step and generations, of `entries` in block tables; nothing where all is on the device.
  void upload_generations(const Batch& batch, size_t entries, cudaStream_t stream);

  Buffer pinned_, device_;
  Buffer pinned_generations_, device_generations_;
  uint32_t step_ = 0;
  Event copied_;
  size_t used_ = 0;                                           // bytes
  DeviceChunk *chunks_ = nullptr, *window_chunks_ = nullptr;  // of window_tables_; null: the same as the others
  const int32_t* pinned_blocks_ = nullptr;
  StepTables tables_{}, window_tables_{};
};

}  // namespace tidal::cuda
