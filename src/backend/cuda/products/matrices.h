// Everything of a layer that multiplies with weights: embedding, inputs of layers, q/k/v with norm, rotation and
// append, gate of attention, output projection, recurrent layers, MLP or experts, logits. Decode rows go through the
// skinny product (matmul_skinny.cu), the others through cuBLASLt, chunk by chunk: it orders its sums by the number of
// rows, and what a chunk gets must not depend on its company.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "backend/batch.h"
#include "backend/cuda/runtime/step_tables.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal::cuda {

/// The rows of a pass: the leading `decode_rows` belong to chunks of at most kDecodeRows rows.
struct PassRows {
  int rows = 0;
  int decode_rows = 0;
  std::span<const int> long_chunks;  ///< rows of each of the others; together rows - decode_rows
};

struct EmbedParams {
  Weight embedding;  ///< [vocab, width]
  StepTables tables;
  int rows = 0;
  float* x = nullptr;  ///< [rows, width], written
};

struct LayerInputsOfRows {
  LayerInputs weights;
  StepTables tables;
  PassRows pass;
  const float* x = nullptr;  ///< [rows, width]
  float* inputs = nullptr;   ///< [rows, layers * layer_input], written
};

struct QkvParams {
  const Layer* layer = nullptr;
  StepTables tables;
  PassRows pass;
  const float* x = nullptr;  ///< [rows, width]
  float* q = nullptr;        ///< [rows, q_width], written
  KvLayer kv;                ///< K and V are appended at the rows' positions, unless the layer has none; sketches are
                             ///< the caller's
};

struct ProjectParams {
  const Layer* layer = nullptr;
  PassRows pass;
  const float* out = nullptr;  ///< [rows, q_width]
  float* x = nullptr;          ///< [rows, width], added to
};

struct MlpParams {
  const Layer* layer = nullptr;
  PassRows pass;
  float* x = nullptr;           ///< [rows, width], added to
  const Layer* next = nullptr;  ///< the layer that comes next, if any: its input is normed on the way
};

struct GateParams {
  const Layer* layer = nullptr;
  PassRows pass;
  const float* x = nullptr;  ///< [rows, width]
  float* out = nullptr;      ///< [rows, q_width], gated
};

struct FinishParams {
  const Layer* layer = nullptr;
  PassRows pass;
  int index = 0;                  ///< of the layer
  const float* inputs = nullptr;  ///< [rows, layers * layer_input], where the layer has an input
  float* x = nullptr;             ///< [rows, width], changed
};

struct DeltaLayerParams {
  const Layer* layer = nullptr;
  StepTables tables;
  PassRows pass;
  int chunks = 0;
  int index = 0;       ///< which recurrent layer of DeviceChunk::state
  float* x = nullptr;  ///< [rows, width], added to
};

struct LogitsParams {
  Weight norm;                          ///< [width], float32
  Weight output;                        ///< [vocab, width]
  const int32_t* logit_rows = nullptr;  ///< [pass.rows], rows of x, device memory (StepTables::logit_rows + an offset)
  PassRows pass;                        ///< counted in logit rows
  const float* x = nullptr;             ///< [rows of the batch, width]
  float* logits = nullptr;              ///< [pass.rows, vocab], written, device memory
};

/// The products of a pass, on one stream at a time. Every operation only launches kernels: it may be captured into a
/// graph, and its addresses (parameters and own workspace) stay valid until the next reserve() that grows. In a pass
/// nothing else may write x between these operations: they leave it normed for each other.
/// All throw tidal::Error.
class Matrices {
 public:
  Matrices();
  ~Matrices();
  Matrices(const Matrices&) = delete;
  Matrices& operator=(const Matrices&) = delete;

  /// Device memory that reserve() takes beside weights, in bytes.
  static int64_t workspace_bytes(const Hyperparameters& hp, int max_rows);
  /// Makes room for passes of up to `max_rows` rows of this shape. Graphs that were captured before are void.
  /// Synchronises.
  void reserve(const Hyperparameters& hp, int max_rows);

  /// First launch of a pass, before qkv(): cosines and sines of the rows' positions, for all layers, and where their
  /// keys go. `window_tables` are `tables` where no layer has blocks of its own (KvLayer::windowed).
  void begin(const StepTables& tables, const StepTables& window_tables, int rows, cudaStream_t stream);
  void embed(const EmbedParams& params, cudaStream_t stream);
  void layer_inputs(const LayerInputsOfRows& params, cudaStream_t stream);
  void qkv(const QkvParams& params, cudaStream_t stream);
  void project(const ProjectParams& params, cudaStream_t stream);
  void gate(const GateParams& params, cudaStream_t stream);
  void delta(const DeltaLayerParams& params, cudaStream_t stream);
  void mlp(const MlpParams& params, cudaStream_t stream);
  void experts(const MlpParams& params, cudaStream_t stream);
  void finish(const FinishParams& params, cudaStream_t stream);
  void logits(const LogitsParams& params, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::cuda
