// Scan layers that estimate what they do not select (Completion): scores, tiers, and one softmax over all of them.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "backend/batch.h"
#include "backend/cuda/runtime/step_tables.h"

namespace tidal::cuda {

/// One layer's attention for consecutive rows of sparse chunks with the same Completion. Contexts, block tables,
/// budgets, sinks and recent are read from `tables` on the device.
struct CompleteParams {
  StepTables tables = {};
  int first_row = 0;
  int rows = 0;
  Completion completion;
  int sketch_bits = 2;
  const float* sink_logits = nullptr;  ///< [heads], optional
  Rows q;
  KvLayer kv;  ///< with sketches of keys and of values
  Selection selection;
  Rows out;
};

/// Kernels and their workspace. A row's result does not depend on its company. Launches: the scores, the estimated tier
/// (one, or two where the device has no clusters of blocks), the tiers within it, the parts, and what they come to.
class CompletedAttention {
 public:
  explicit CompletedAttention(bool clusters);
  ~CompletedAttention();
  CompletedAttention(const CompletedAttention&) = delete;
  CompletedAttention& operator=(const CompletedAttention&) = delete;

  /// What complete() goes by from now on. The workspace itself comes with make_room().
  void reserve(const Hyperparameters& hp, int max_rows, int max_context);
  /// Bytes that make_room() takes for such a policy, in numbers.
  int64_t workspace_bytes(const Hyperparameters& hp, const Policy& policy, int max_rows, int max_context) const;
  /// Whether there is room for rows with such a policy, in numbers.
  bool has_room(const Policy& policy) const;
  /// Makes it; what was captured before is void, and nothing may still be running. Throws Error where the memory is not
  /// there.
  void make_room(const Policy& policy);
  /// Only launches: may be captured. Everything in one stream.
  void complete(const CompleteParams& params, cudaStream_t stream);

 private:
  struct Workspace;
  bool clusters_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace tidal::cuda
