#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numbers>
#include <numeric>
#include <vector>

#include "backend/backend.h"
#include "backend/key_units.h"
#include "backend/reference/attention.h"
#include "backend/reference/completion.h"
#include "backend/reference/delta.h"
#include "backend/reference/experts.h"
#include "backend/reference/math.h"
#include "backend/reference/select.h"
#include "core/error.h"
#include "core/read_stream.h"

namespace tidal {
namespace {

using reference::attend_head;
using reference::kv_row;
using reference::Matrix;
using reference::scan_scores;
using reference::Scores;

constexpr std::align_val_t kAlignment{64};

void free_memory(std::byte* data, size_t) { ::operator delete(data, kAlignment); }

/// Scalar, one thread, nothing clever: what the other backends are held against. Its memory is the host's.
class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  int decode_rows() const override { return std::numeric_limits<int>::max(); }
  double read_stream() override { return ReadStream(1).measure(); }

  Buffer allocate(size_t bytes, std::string_view what) override {
    void* data = ::operator new(bytes, kAlignment, std::nothrow);
    if (!data) fail("out of memory: cannot get {:.1f} MiB for the {}", bytes / 1048576.0, what);
    return {static_cast<std::byte*>(std::memset(data, 0, bytes)), bytes, free_memory};
  }
  Weight upload(const Weight& host) override { return host; }
  bool keeps(KvType, int) const override { return true; }
  bool completes() const override { return true; }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void write(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void read(std::byte* to, const std::byte* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void sketch(KvLayer kv, std::span<const BlockId> blocks) override;
  void reserve(const Hyperparameters&, int, int) override {}

  void begin(const Hyperparameters& hp, const Batch&) override { hp_ = hp; }
  void embed(const Weight& embedding, const Batch& batch, Rows x) override;
  void layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs) override;
  void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) override;
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
              const Weight& sink_logits) override;
  void project(const Layer& layer, Rows out, Rows x) override {
    add_product(layer.wo, layer.bo, layer.attn_post_norm, out, x);
  }
  void gate(const Layer& layer, Rows x, Rows out) override;
  void delta(const Layer& layer, const Batch& batch, int index, Rows x) override;
  void mlp(const Layer& layer, Rows x) override;
  void experts(const Layer& layer, Rows x) override;
  void finish(const Layer& layer, int index, Rows inputs, Rows x) override;
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) override;

 private:
  /// x += W from + bias, normed where there is a norm.
  void add_product(const Weight& weight, const Weight& bias, const Weight& norm, Rows from, Rows x) const;
  /// x += from, normed where there is a norm.
  void add(Rows from, const Weight& norm, Rows x) const;
  /// A copy where there is no norm.
  Matrix normalise(Rows x, const Weight& norm) const;
  /// All heads of one row over the positions from `first` to its own; returns every head's scores.
  std::vector<Scores> attend_row(const Chunk& chunk, int index, int first, Rows q, KvLayer kv, const float* sink_logits,
                                 Rows out) const;
  /// The positions of a sparse chunk from the scores of its row.
  void select(const Chunk& chunk, const Policy& policy, std::vector<Scores> scores, const Selection& selection) const;
  /// The attention of a sparse chunk's row that completes it; and the selection.
  void complete(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, const float* sink_logits,
                Rows out) const;
  /// All heads of a sparse chunk's row over their selected positions.
  void attend_selected(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection, const float* sink_logits,
                       Rows out) const;

  Hyperparameters hp_;
};

void ReferenceBackend::sketch(KvLayer kv, std::span<const BlockId> blocks) {
  for (const int bits : kSketchBits) {
    if (!kv.keeps_sketch(bits)) continue;
    for (const BlockId block : blocks) {
      for (int h = 0; h < kv.kv_heads; ++h) {
        sketch_block({kv.head_dim, bits}, kv.type, kv.tile(block, h), kv.sketch(bits, block, h));
      }
    }
  }
  for (const BlockId block : blocks) {
    for (int h = 0; kv.value_sketches && h < kv.kv_heads; ++h) {
      sketch_values({kv.head_dim}, kv.type, kv.tile(block, h), kv.value_sketch(block, h));
    }
  }
}

void ReferenceBackend::embed(const Weight& embedding, const Batch& batch, Rows x) {
  for (int r = 0; r < x.rows; ++r) {
    reference::dequantise(embedding, batch.tokens[r], x.row(r));
    for (int i = 0; i < x.width; ++i) x.row(r)[i] *= hp_.embedding_scale;
  }
}

void ReferenceBackend::layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs) {
  const int count = hp_.layer_input;
  const double root = std::sqrt(static_cast<double>(count)), width_root = std::sqrt(static_cast<double>(x.width));
  std::vector<float> embedding(static_cast<size_t>(inputs.width));
  reference::multiply(weights.projection, {}, x, inputs);
  for (int r = 0; r < x.rows; ++r) {
    float* const row = inputs.row(r);
    reference::dequantise(weights.embedding, batch.tokens[r], embedding.data());
    for (int i = 0; i < inputs.width; ++i) row[i] = static_cast<float>(row[i] / width_root);
    for (int i = 0; i < inputs.width; i += count) {
      reference::rms_norm(row + i, weights.norm, count, hp_.rms_epsilon, row + i);
    }
    for (int i = 0; i < inputs.width; ++i) {
      row[i] = static_cast<float>((row[i] + root * embedding[i]) / std::numbers::sqrt2);
    }
  }
}

void ReferenceBackend::qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) {
  const int dim = kv.head_dim, kv_width = kv.kv_heads * dim;
  const Matrix normed = normalise(x, layer.attn_norm), k(x.rows, kv_width), v(x.rows, kv_width);
  reference::multiply(layer.wq, layer.bq, normed, q);
  if (layer.wk) {
    reference::multiply(layer.wk, layer.bk, normed, k);
    reference::multiply(layer.wv ? layer.wv : layer.wk, layer.bv, normed, v);
  }
  const auto finish = [&](float* row, int width, const Weight& norm, int position) {
    for (int64_t i = 0; norm && i < width; i += norm.cols) {
      reference::rms_norm(row + i, norm, static_cast<int>(norm.cols), hp_.rms_epsilon, row + i);
    }
    const Rope& rope = layer.window_rope ? hp_.window_rope : hp_.rope;
    for (int i = 0; layer.rotates && i < width; i += dim) reference::rotate(row + i, position, rope);
  };
  const float* const units = key_units_of(layer, kv);
  const int group = q.width / kv_width;
  for (const Chunk& chunk : batch.chunks) {
    for (int i = 0; i < chunk.rows; ++i) {
      const int row = chunk.first_row + i, position = chunk.position + i;
      finish(q.row(row), q.width, layer.q_norm, position);
      const float factor = hp_.temperature(position) * layer.query_scale;
      for (int d = 0; d < q.width; ++d) q.row(row)[d] *= factor;
      for (int d = 0; units && d < q.width; ++d) q.row(row)[d] *= units[d / dim / group * dim + d % dim];
      if (!layer.wk) continue;
      finish(k->row(row), kv_width, layer.k_norm, position);
      for (int d = 0; units && d < kv_width; ++d) k->row(row)[d] /= units[d];
      for (int h = 0; h < kv.kv_heads; ++h) {
        float* const value = v->row(row) + h * dim;
        if (hp_.value_norm) reference::rms_norm(value, {}, dim, hp_.rms_epsilon, value);
        write_kv_row(kv.row_layout(), k->row(row) + static_cast<ptrdiff_t>(h) * dim, value,
                     kv_row(chunk, kv, h, position));
      }
    }
    for (int b = chunk.first_full(); layer.wk && b < chunk.end_full(); ++b)
      sketch(kv, chunk.blocks_of(kv).subspan(b, 1));
  }
}

std::vector<Scores> ReferenceBackend::attend_row(const Chunk& chunk, int index, int first, Rows q, KvLayer kv,
                                                 const float* sink_logits, Rows out) const {
  const int row = chunk.first_row + index;
  std::vector<int32_t> positions(chunk.position + index + 1 - first);
  std::iota(positions.begin(), positions.end(), first);
  std::vector<Scores> scores;
  for (int h = 0; h < hp_.heads; ++h) {
    const int64_t offset = int64_t{h} * kv.head_dim;
    scores.push_back(attend_head(q.row(row) + offset, chunk, kv, h * kv.kv_heads / hp_.heads, positions,
                                 hp_.product_cap(kv.head_dim), sink_logits ? sink_logits + h : nullptr,
                                 out.row(row) + offset));
  }
  return scores;
}

void ReferenceBackend::select(const Chunk& chunk, const Policy& policy, std::vector<Scores> scores,
                              const Selection& selection) const {
  const int units = scope_units(policy.scope, hp_.heads, hp_.kv_heads);
  const int heads = hp_.heads / units;  // that share one set
  const double scale = 1.0 / std::sqrt(static_cast<double>(hp_.head_dim));
  const float cap = weighs(policy, hp_.heads, hp_.kv_heads) ? hp_.product_cap(hp_.head_dim) : 0;
  for (Scores& head : scores) {
    for (float& score : head) score = reference::capped(score, cap);
  }
  for (int unit = 0; unit < units; ++unit) {
    const std::span<const Scores> own(scores.data() + static_cast<size_t>(unit) * heads, heads);
    const auto chosen = reference::select_positions(own, policy, scale);
    std::copy(chosen.begin(), chosen.end(), selection.unit(chunk, unit));
    selection.count(chunk, unit) = static_cast<int32_t>(chosen.size());
  }
}

void ReferenceBackend::complete(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection,
                                const float* sink_logits, Rows out) const {
  const std::vector<Scores> scores = scan_scores(chunk, hp_.heads, q, kv);
  const int group = hp_.heads / kv.kv_heads;
  for (int h = 0; h < kv.kv_heads; ++h) {
    const int first = h * group;
    const int64_t offset = int64_t{first} * kv.head_dim;
    const auto selected = reference::complete(
        {chunk, kv, h, q.row(chunk.first_row) + offset, sink_logits ? sink_logits + first : nullptr},
        {scores.begin() + first, scores.begin() + first + group}, out.row(chunk.first_row) + offset);
    std::copy(selected.begin(), selected.end(), selection.unit(chunk, h));
    selection.count(chunk, h) = static_cast<int32_t>(selected.size());
  }
}

void ReferenceBackend::attend_selected(const Chunk& chunk, Rows q, KvLayer kv, const Selection& selection,
                                       const float* sink_logits, Rows out) const {
  const int units = scope_units(chunk.policy.scope, hp_.heads, hp_.kv_heads);
  for (int h = 0; h < hp_.heads; ++h) {
    const int unit = h * units / hp_.heads;
    const std::span<const int32_t> chosen(selection.unit(chunk, unit), selection.count(chunk, unit));
    const int64_t offset = int64_t{h} * kv.head_dim;
    attend_head(q.row(chunk.first_row) + offset, chunk, kv, h * kv.kv_heads / hp_.heads, chosen,
                hp_.product_cap(kv.head_dim), sink_logits ? sink_logits + h : nullptr,
                out.row(chunk.first_row) + offset);
  }
}

void ReferenceBackend::attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
                              const Weight& sink_weight) {
  const float* const sink_logits = sink_weight.floats();
  for (const Chunk& chunk : batch.chunks) {
    switch (chunk.role(layer)) {
      case Role::Dense:
        for (int i = 0; i < chunk.rows; ++i) {
          attend_row(chunk, i, hp_.first_seen(layer, chunk.position + i), q, kv, sink_logits, out);
        }
        break;
      case Role::Select:
        select(chunk, chunk.policy, attend_row(chunk, 0, 0, q, kv, sink_logits, out), selection);
        break;
      case Role::Scan:
        if (chunk.policy.completion) {
          complete(chunk, q, kv, selection, sink_logits, out);
          break;
        }
        select(chunk, scan_policy(chunk.policy, chunk.context()), scan_scores(chunk, hp_.heads, q, kv), selection);
        attend_selected(chunk, q, kv, selection, sink_logits, out);
        break;
      case Role::Sparse: attend_selected(chunk, q, kv, selection, sink_logits, out); break;
    }
  }
}

void ReferenceBackend::add_product(const Weight& weight, const Weight& bias, const Weight& norm, Rows from,
                                   Rows x) const {
  const Matrix raw(x.rows, x.width);
  reference::multiply(weight, bias, from, raw);
  add(raw, norm, x);
}

void ReferenceBackend::add(Rows from, const Weight& norm, Rows x) const {
  const Matrix product = normalise(from, norm);
  for (int r = 0; r < x.rows; ++r) {
    for (int i = 0; i < x.width; ++i) x.row(r)[i] += product->row(r)[i];
  }
}

Matrix ReferenceBackend::normalise(Rows x, const Weight& norm) const {
  Matrix normed(x.rows, x.width);
  for (int r = 0; r < x.rows; ++r) {
    if (norm) {
      reference::rms_norm(x.row(r), norm, x.width, hp_.rms_epsilon, normed->row(r));
    } else {
      std::copy_n(x.row(r), x.width, normed->row(r));
    }
  }
  return normed;
}

void ReferenceBackend::gate(const Layer& layer, Rows x, Rows out) {
  const Matrix gates(out.rows, out.width);
  reference::multiply(layer.attn_gate, {}, normalise(x, layer.attn_norm), gates);
  for (int r = 0; r < out.rows; ++r) {
    for (int i = 0; i < out.width; ++i) out.row(r)[i] /= 1.0f + std::exp(-gates->row(r)[i]);
  }
}

void ReferenceBackend::delta(const Layer& layer, const Batch& batch, int index, Rows x) {
  const DeltaNet& net = hp_.delta;
  const DeltaWeights& weights = layer.delta;
  const Matrix normed = normalise(x, layer.attn_norm), mixed(x.rows, net.mixed_width());
  const Matrix beta(x.rows, net.value_heads), alpha(x.rows, net.value_heads);
  const Matrix gates(x.rows, net.value_width()), out(x.rows, net.value_width());
  reference::multiply(weights.mixed, {}, normed, mixed);
  reference::multiply(weights.beta, {}, normed, beta);
  reference::multiply(weights.alpha, {}, normed, alpha);
  reference::multiply(weights.gate, {}, normed, gates);
  for (const Chunk& chunk : batch.chunks) {
    float* state = chunk.state + index * net.state_elements();
    if (chunk.position == 0) std::fill_n(state, net.state_elements(), 0.0f);
    for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
      reference::delta_row(net, weights, {mixed->row(r), beta->row(r), alpha->row(r)}, hp_.rms_epsilon, state,
                           out->row(r));
      for (int i = 0; i < out->width; ++i) {
        float* head = out->row(r) + i;
        if (i % net.head_dim == 0) reference::rms_norm(head, weights.norm, net.head_dim, hp_.rms_epsilon, head);
        const float gate = gates->row(r)[i];
        *head *= gate / (1.0f + std::exp(-gate));
      }
    }
  }
  add_product(weights.out, {}, {}, out, x);
}

void ReferenceBackend::mlp(const Layer& layer, Rows x) {
  const Matrix normed = normalise(x, layer.ffn_norm);
  add_product(layer.down, layer.b_down, layer.ffn_post_norm,
              reference::hidden_layer(hp_.activation, layer.gate, layer.b_gate, layer.up, layer.b_up, normed), x);
}

void ReferenceBackend::experts(const Layer& layer, Rows x) {
  const Matrix normed = normalise(x, layer.ffn_norm), logits(x.rows, hp_.experts.count);
  const Matrix routed = normalise(x, layer.router_norm ? layer.router_norm : layer.ffn_norm);
  reference::multiply(layer.router, layer.router_bias, routed, logits);
  if (!hp_.experts.own_norms) {
    if (layer.shared_down) reference::add_shared_expert(hp_, layer, normed, x);
    return reference::add_chosen_experts(hp_, layer, logits, normed, x);
  }
  const Matrix shared(x.rows, x.width), chosen(x.rows, x.width), sum(x.rows, x.width);
  reference::add_shared_expert(hp_, layer, normed, shared);
  reference::add_chosen_experts(hp_, layer, logits, normalise(x, layer.expert_norm), chosen);
  add(shared, layer.shared_post_norm, sum);
  add(chosen, layer.expert_post_norm, sum);
  add(sum, layer.ffn_post_norm, x);
}

void ReferenceBackend::finish(const Layer& layer, int index, Rows inputs, Rows x) {
  if (layer.input_gate) {
    const Matrix hidden(x.rows, hp_.layer_input);
    reference::multiply(layer.input_gate, {}, x, hidden);
    for (int r = 0; r < x.rows; ++r) {
      const float* const own = inputs.row(r) + static_cast<ptrdiff_t>(index) * hidden->width;
      for (int i = 0; i < hidden->width; ++i) {
        hidden->row(r)[i] = reference::activate(hp_.activation, hidden->row(r)[i], own[i]);
      }
    }
    add_product(layer.input_proj, {}, layer.input_norm, hidden, x);
  }
  for (int r = 0; layer.output_scale && r < x.rows; ++r) {
    for (int i = 0; i < x.width; ++i) x.row(r)[i] *= layer.output_scale.floats()[0];
  }
}

void ReferenceBackend::logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x,
                              std::span<float> logits) {
  const Matrix normed(static_cast<int>(batch.logit_rows.size()), x.width);
  for (int i = 0; i < normed->rows; ++i) {
    reference::rms_norm(x.row(batch.logit_rows[i]), norm, x.width, hp_.rms_epsilon, normed->row(i));
  }
  reference::multiply(output, {}, normed, {logits.data(), normed->rows, static_cast<int>(output.rows)});
  for (float& logit : logits) logit = reference::capped(logit, hp_.logit_cap);
}

}  // namespace

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace tidal
