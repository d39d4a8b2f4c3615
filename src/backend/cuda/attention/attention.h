// Attention of decode rows: Dense, Select, Sparse and Scan layers.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "backend/batch.h"
#include "backend/cuda/row_cache/row_cache.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// One layer's attention for consecutive decode rows of one role (and, where that is sparse, of one scope, pooling and
/// sketch width). Contexts, block tables, budgets, sinks, recent and top-p are read from `tables` on the device, so a
/// captured launch stays right while they change.
struct AttendParams {
  StepTables tables;  ///< rows, chunks and positions of the whole batch
  int first_row = 0;  ///< of the run, a row of the batch
  int rows = 0;       ///< of the run
  Role role = Role::Dense;
  int window = 0;                      ///< of a Dense layer: rows see the last so many positions; 0: all
  const float* sink_logits = nullptr;  ///< [heads], of Backend::attend(); optional
  float cap = 0;                       ///< Hyperparameters::product_cap(); 0: none
  Scope scope = Scope::Shared;         ///< of no account where Dense
  Pooling pooling = Pooling::Sum;      ///< Select and Scan
  int sketch_bits = 2;                 ///< Scan
  Rows q;                              ///< [rows of the batch, heads * head_dim], after RoPE
  KvLayer kv;                          ///< holds the rows' own keys and values, too; heads as hp.kv() has them
  Selection selection;                 ///< written by Select and Scan, read by Sparse
  /// What the device holds of the layer's rows in host memory; nothing: selected rows are read where they are. `tables`
  /// has generations with it. The run's rows are below the cache's sequences, their sets as large as it has room for.
  RowCacheLayer row_cache;
  Rows out;  ///< [rows of the batch, heads * head_dim]
  /// Says of the kernel before this one in the stream that it lets the next one start only after its own
  /// wait_for_previous(), and that it writes neither `selection` nor the keys and values of positions before the rows'
  /// chunks, nor sketches of the blocks before theirs. Then these are read while it still runs.
  bool early = false;
  /// Of a Scan layer: the kernel before this one in the stream writes `tables`, so that none starts before it has
  /// ended.
  bool fresh_tables = false;
};

/// Kernels and their workspace. A row's result does not depend on the other rows of the batch or of the run, down to
/// the last bit, and is the same every time, wherever its rows lie. Launches: Dense 1, Select 2, Sparse 1, Scan 3, one
/// more to select where the device has no clusters of blocks, and one more of Sparse and Scan with a row cache. Runs of
/// more than 64 rows, or of more rows than a quarter of a gigabyte has room for the scores of, are cut, and each part
/// launches as many.
class DecodeAttention {
 public:
  /// clusters: whether sets are selected by clusters of blocks where the device has them, and scored by sketches with
  /// as much shared memory as devices with clusters have; the results are the same.
  explicit DecodeAttention(bool clusters = true);
  ~DecodeAttention();
  DecodeAttention(const DecodeAttention&) = delete;
  DecodeAttention& operator=(const DecodeAttention&) = delete;

  /// Makes room; what was captured before is void. Throws Error where a head size is none of 16, 32, 48, 64, 80, 96,
  /// 112, 128, 160, 192, 256, 512, or the memory is not there.
  void reserve(const Hyperparameters& hp, int max_rows, int max_context);
  /// Bytes that reserve() takes on the device at most, for the estimate before a model is loaded.
  size_t workspace_bytes(const Hyperparameters& hp, int max_rows, int max_context) const;
  /// Only launches: may be captured. Everything in one stream, one after the other: the workspace is shared.
  void attend(const AttendParams& params, cudaStream_t stream);

 private:
  struct Workspace;
  bool clusters_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace tidal::cuda
