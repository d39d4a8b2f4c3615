// What is written down of a pass becomes kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/completion/completion.h"
#include "backend/cuda/pass/kv_staging.h"
#include "backend/cuda/pass/op_list.h"
#include "backend/cuda/pass/results.h"
#include "backend/cuda/pass/step_upload.h"
#include "backend/cuda/products/matrices.h"

namespace tidal::cuda {

/// Launches the operations of passes through those that compute them, which must outlive it.
class PassLauncher {
 public:
  PassLauncher(Matrices& matrices, DecodeAttention& attention, CompletedAttention& completed, const StepUpload& upload,
               const Results& results)
      : matrices_(matrices), attention_(attention), completed_(completed), upload_(upload), results_(results) {}

  /// Contexts have up to so many positions.
  void reserve(int max_context) { staging_.reserve(max_context); }
  /// Only launches: may be captured, where there are no long chunks. `long_chunks`: rows of each chunk that is not of
  /// decode rows.
  void launch(const OpList& list, const Hyperparameters& hp, std::span<const int> long_chunks, cudaStream_t stream);

 private:
  void launch(const AnglesOp& op);
  void launch(const EmbedOp& op);
  void launch(const LayerInputsOp& op);
  void launch(const QkvOp& op);
  void launch(const AttendOp& op);
  void launch(const PrefillOp& op);
  void launch(const GateOp& op);
  void launch(const DeltaOp& op);
  void launch(const ProjectOp& op);
  void launch(const MlpOp& op);
  void launch(const ExpertsOp& op);
  void launch(const FinishOp& op);
  void launch(const LogitsOp& op);

  /// Of an MLP, or of experts.
  MlpParams mlp_params(int layer, float* x) const;
  PassRows pass_rows() const { return {list_->shape.rows, list_->shape.decode_rows, long_chunks_}; }

  Matrices& matrices_;
  DecodeAttention& attention_;
  CompletedAttention& completed_;
  const StepUpload& upload_;
  const Results& results_;
  KvStaging staging_;

  // Of the pass that is launched.
  const OpList* list_ = nullptr;
  const Hyperparameters* hp_ = nullptr;
  std::span<const int> long_chunks_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace tidal::cuda
