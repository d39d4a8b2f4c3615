#include "backend/cuda/pass/pass_launcher.h"

#include <algorithm>

#include "backend/cuda/attention/prefill_attention.h"
#include "backend/cuda/scan/sketch_blocks.h"

namespace tidal::cuda {

void PassLauncher::launch(const OpList& list, const Hyperparameters& hp, std::span<const int> long_chunks,
                          cudaStream_t stream) {
  list_ = &list;
  hp_ = &hp;
  long_chunks_ = long_chunks;
  stream_ = stream;
  try {
    staging_.begin(list, upload_, stream);
    for (const Op& op : list.ops) {
      std::visit([this](const auto& one) { launch(one); }, op);
    }
  } catch (...) {
    staging_.abandon();
    throw;
  }
}

void PassLauncher::launch(const AnglesOp&) {
  const PassShape& shape = list_->shape;
  matrices_.begin(shape.tables, shape.window_tables, shape.rows, stream_);
}

void PassLauncher::launch(const EmbedOp& op) {
  matrices_.embed({.embedding = op.embedding, .tables = list_->shape.tables, .rows = list_->shape.rows, .x = op.x},
                  stream_);
}

void PassLauncher::launch(const LayerInputsOp& op) {
  matrices_.layer_inputs(
      {.weights = op.weights, .tables = list_->shape.tables, .pass = pass_rows(), .x = op.x, .inputs = op.inputs},
      stream_);
}

void PassLauncher::launch(const QkvOp& op) {
  const PassShape& shape = list_->shape;
  matrices_.qkv({.layer = &list_->layers[op.layer],
                 .tables = shape.tables_of(op.kv),
                 .pass = pass_rows(),
                 .x = op.x,
                 .q = op.q,
                 .kv = op.kv},
                stream_);
  if (!list_->layers[op.layer].wk) return;  // another layer's K and V have their sketches
  // Apart, so that the grid of the many short chunks is not made for the longest.
  const int longs = shape.chunks - shape.decode_chunks;
  if (shape.fills) {
    launch_sketch_filled(op.kv, shape.tables_of(op.kv), 0, shape.decode_chunks, std::min(shape.longest, kDecodeRows),
                         stream_);
  }
  if (longs > 0)
    launch_sketch_filled(op.kv, shape.tables_of(op.kv), shape.decode_chunks, longs, shape.longest, stream_);
}

void PassLauncher::launch(const AttendOp& op) {
  if (op.completion) {
    completed_.complete({.tables = list_->shape.tables_of(op.kv),
                         .first_row = op.first_row,
                         .rows = op.rows,
                         .completion = op.completion,
                         .sketch_bits = op.sketch_bits,
                         .sink_logits = op.sink_logits,
                         .q = op.q,
                         .kv = op.kv,
                         .selection = op.selection,
                         .out = op.out},
                        stream_);
    return;
  }
  attention_.attend({.tables = list_->shape.tables_of(op.kv),
                     .first_row = op.first_row,
                     .rows = op.rows,
                     .role = op.role,
                     .window = op.window,
                     .sink_logits = op.sink_logits,
                     .cap = hp_->product_cap(op.kv.head_dim),
                     .scope = op.scope,
                     .pooling = op.pooling,
                     .sketch_bits = op.sketch_bits,
                     .q = op.q,
                     .kv = op.kv,
                     .selection = op.selection,
                     .row_cache = op.row_cache,
                     .out = op.out,
                     // What is before it in the stream, a layer's products, sketches and attention of other rows, waits
                     // first and writes no selection that this one reads.
                     .early = true},
                    stream_);
}

void PassLauncher::launch(const PrefillOp& op) {
  launch_prefill_attention({.q = op.q.row(op.first_row),
                            .kv = op.kv.data,
                            .type = op.kv.type,
                            .blocks = staging_.table(op, upload_),
                            .out = op.out.row(op.first_row),
                            .rows = op.rows,
                            .position = op.position,
                            .window = op.window,
                            .sink_logits = op.sink_logits,
                            .cap = hp_->product_cap(op.kv.head_dim),
                            .heads = hp_->heads,
                            .kv_heads = op.kv.kv_heads,
                            .head_dim = op.kv.head_dim},
                           stream_);
  staging_.launched(op);
}

void PassLauncher::launch(const GateOp& op) {
  matrices_.gate({.layer = &list_->layers[op.layer], .pass = pass_rows(), .x = op.x, .out = op.out}, stream_);
}

void PassLauncher::launch(const DeltaOp& op) {
  matrices_.delta({.layer = &list_->layers[op.layer],
                   .tables = list_->shape.tables,
                   .pass = pass_rows(),
                   .chunks = list_->shape.chunks,
                   .index = op.index,
                   .x = op.x},
                  stream_);
}

void PassLauncher::launch(const ProjectOp& op) {
  matrices_.project({.layer = &list_->layers[op.layer], .pass = pass_rows(), .out = op.out, .x = op.x}, stream_);
}

MlpParams PassLauncher::mlp_params(int layer, float* x) const {
  const Layer* const own = &list_->layers[layer];
  const bool last = own == &list_->layers.back();
  return {.layer = own, .pass = pass_rows(), .x = x, .next = last ? nullptr : own + 1};
}

void PassLauncher::launch(const MlpOp& op) { matrices_.mlp(mlp_params(op.layer, op.x), stream_); }

void PassLauncher::launch(const ExpertsOp& op) { matrices_.experts(mlp_params(op.layer, op.x), stream_); }

void PassLauncher::launch(const FinishOp& op) {
  matrices_.finish(
      {.layer = &list_->layers[op.layer], .pass = pass_rows(), .index = op.index, .inputs = op.inputs, .x = op.x},
      stream_);
}

void PassLauncher::launch(const LogitsOp& op) {
  matrices_.logits({.norm = op.norm,
                    .output = op.output,
                    .logit_rows = list_->shape.tables.logit_rows + op.first,
                    .pass = {op.rows, op.decode ? op.rows : 0, {&op.rows, op.decode ? 0u : 1u}},
                    .x = op.x,
                    .logits = results_.logits()},
                   stream_);
  results_.launch(op, stream_);
}

}  // namespace tidal::cuda
