// What a forward pass asks for, written down, so that a pass that was seen before can be run as one CUDA graph.
#pragma once

#include <algorithm>
#include <variant>
#include <vector>

#include "backend/batch.h"
#include "backend/cuda/products/matrices.h"
#include "backend/cuda/row_cache/row_cache.h"
#include "backend/cuda/runtime/step_tables.h"
#include "backend/weights.h"

namespace tidal::cuda {

/// The rotary angles of the rows' positions.
struct AnglesOp {
  bool operator==(const AnglesOp&) const = default;
};

struct EmbedOp {
  Weight embedding;
  float* x = nullptr;

  bool operator==(const EmbedOp&) const = default;
};

struct LayerInputsOp {
  LayerInputs weights;
  const float* x = nullptr;
  float* inputs = nullptr;

  bool operator==(const LayerInputsOp&) const = default;
};

/// Layers are kept once for the operations that follow each other: `layer` is an index into OpList::layers.
struct QkvOp {
  int layer = 0;
  const float* x = nullptr;
  float* q = nullptr;
  KvLayer kv;

  bool operator==(const QkvOp&) const = default;
};

/// Attention of consecutive decode rows that do the same.
struct AttendOp {
  int first_row = 0;
  int rows = 0;
  Role role = Role::Dense;
  int window = 0;
  const float* sink_logits = nullptr;
  Scope scope = Scope::Shared;
  Pooling pooling = Pooling::Sum;
  int sketch_bits = 0;
  Completion completion;
  Rows q;
  KvLayer kv;
  Selection selection;
  RowCacheLayer row_cache;
  Rows out;

  bool operator==(const AttendOp&) const = default;
};

/// Dense attention of a long chunk.
struct PrefillOp {
  int chunk = 0;
  int first_row = 0;
  int rows = 0;
  int position = 0;
  int window = 0;
  const float* sink_logits = nullptr;
  Rows q;
  KvLayer kv;
  Rows out;

  bool operator==(const PrefillOp&) const = default;
};

/// The gate of attention.
struct GateOp {
  int layer = 0;
  const float* x = nullptr;
  float* out = nullptr;

  bool operator==(const GateOp&) const = default;
};

/// A recurrent layer.
struct DeltaOp {
  int layer = 0;
  int index = 0;
  float* x = nullptr;

  bool operator==(const DeltaOp&) const = default;
};

struct ProjectOp {
  int layer = 0;
  const float* out = nullptr;
  float* x = nullptr;

  bool operator==(const ProjectOp&) const = default;
};

struct MlpOp {
  int layer = 0;
  float* x = nullptr;

  bool operator==(const MlpOp&) const = default;
};

/// In place of MlpOp where the layer is a mixture of experts.
struct ExpertsOp {
  int layer = 0;
  float* x = nullptr;

  bool operator==(const ExpertsOp&) const = default;
};

/// The end of a layer that has an input or an output scale.
struct FinishOp {
  int layer = 0;
  int index = 0;
  const float* inputs = nullptr;
  float* x = nullptr;

  bool operator==(const FinishOp&) const = default;
};

/// The logits of a slice of the logit rows, or the best of them, and their way to the host.
struct LogitsOp {
  Weight norm, output;
  int first = 0;
  int rows = 0;
  bool decode = false;  ///< by the skinny product
  int likely = 0;       ///< of each row; 0: all logits
  const float* x = nullptr;

  bool operator==(const LogitsOp&) const = default;
};

using Op = std::variant<AnglesOp, EmbedOp, LayerInputsOp, QkvOp, AttendOp, PrefillOp, GateOp, DeltaOp, ProjectOp, MlpOp,
                        ExpertsOp, FinishOp, LogitsOp>;

/// The shape of a pass: what launches depend on beside the operations.
struct PassShape {
  StepTables tables{};
  StepTables window_tables{};  ///< for layers whose cache is KvLayer::windowed
  int rows = 0;
  int decode_rows = 0;
  int chunks = 0;
  int decode_chunks = 0;
  int longest = 0;       ///< rows of the longest chunk
  bool fills = false;    ///< a chunk of decode rows fills a block: of 64 passes with one row one does
  bool on_host = false;  ///< a chunk has blocks in host memory

  const StepTables& tables_of(const KvLayer& kv) const { return kv.windowed ? window_tables : tables; }
  bool operator==(const PassShape&) const = default;
};

/// Layers of a model that was loaded are compared by their ids: a pass of 48 has 100 KB of weights' addresses and
/// sizes.
inline bool same_layer(const Layer& a, const Layer& b) { return a.id == b.id && (a.id != 0 || a == b); }

/// Operations of one pass, in order. Equal lists launch the same kernels with the same parameters.
struct OpList {
  PassShape shape;
  std::vector<Layer> layers;
  std::vector<Op> ops;

  /// Its index in `layers`.
  int add(const Layer& layer) {
    if (layers.empty() || !same_layer(layers.back(), layer)) layers.push_back(layer);
    return static_cast<int>(layers.size()) - 1;
  }
  void clear() {
    layers.clear();
    ops.clear();
  }

  bool operator==(const OpList& other) const {
    return shape == other.shape && ops == other.ops &&
           std::equal(layers.begin(), layers.end(), other.layers.begin(), other.layers.end(), same_layer);
  }
};

}  // namespace tidal::cuda
