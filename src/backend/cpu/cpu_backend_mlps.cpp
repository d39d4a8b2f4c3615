// The CPU backend's operations before, between and behind the layers' attention: embeddings, MLPs, logits.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

void dequantise_row(const Weight& table, int64_t index, float* to) {
  if (table.type == GGML_TYPE_F32) {
    std::memcpy(to, table.row(index), table.row_bytes());
  } else {
    ggml_get_type_traits(table.type)->to_float(table.row(index), to, table.cols);
  }
}

}  // namespace

void CpuBackend::embed(const Weight& embedding, const Batch& batch, Rows x) {
  for (int r = 0; r < x.rows; ++r) {
    dequantise_row(embedding, batch.tokens[r], x.row(r));
    if (hp_.embedding_scale != 1) scale_by(hp_.embedding_scale, x.width, x.row(r));
  }
}

void CpuBackend::layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs) {
  const int count = hp_.layer_input;
  const float root = std::sqrt(static_cast<float>(count)), width_root = std::sqrt(static_cast<float>(x.width));
  const Weight& embedding = weights.embedding;
  const Product product{&weights.projection, nullptr, inputs};
  multiply({&product, 1}, x);
#pragma omp parallel for schedule(static) num_threads(threads_) if (x.rows > kShortChunk)
  for (int r = 0; r < x.rows; ++r) {
    float* const row = inputs.row(r);
    float* const own = embedded_.as<float>() + static_cast<ptrdiff_t>(omp_get_thread_num()) * inputs.width;
    dequantise_row(embedding, batch.tokens[r], own);
    scale_by(1 / width_root, inputs.width, row);
    for (int i = 0; i < inputs.width; i += count) {
      rms_norm(row + i, weights.norm.floats(), count, hp_.rms_epsilon, row + i);
    }
    scale_by(root, inputs.width, own);
    add_to(own, inputs.width, row);
    scale_by(std::numbers::sqrt2_v<float> / 2, inputs.width, row);
  }
}

MlpInput CpuBackend::mlp_input(Rows normed) {
  const bool longs = short_ < normed.rows;
  return {.normed = normed,
          .short_rows = short_,
          .elements = longs ? to_elements(long_rows(normed)) : nullptr,
          .long_chunks = long_chunks_,
          .activation = hp_.activation};
}

void CpuBackend::delta(const Layer& layer, const Batch& batch, int index, Rows x) {
  const DeltaWeights& weights = layer.delta;
  const DeltaRule::Inputs to = delta_.inputs(x.rows);
  const Rows normed = normalise(x, layer.attn_norm);
  const Product products[] = {{&weights.mixed, nullptr, to.mixed}, {&weights.gate, nullptr, to.gates}};
  multiply(products, normed);
  // Few columns: dequantising them for a product would take longer than the product.
  quantised_.assign(normed);
  const DotJob jobs[] = {{.weight = &weights.beta, .y = to.beta}, {.weight = &weights.alpha, .y = to.alpha}};
  dot_matmul(jobs, quantised_, threads_);
  const Product product{&weights.out, nullptr, x, true};
  multiply({&product, 1}, delta_.run(hp_, weights, batch, index));
}

void CpuBackend::mlp(const Layer& layer, Rows x) {
  const Rows given = before_norm(x, layer.ffn_post_norm);
  mlp_.add({&layer.gate, &layer.up, &layer.down, &layer.b_gate, &layer.b_up, &layer.b_down},
           mlp_input(normalise(x, layer.ffn_norm)), given);
  add_normed(given, layer.ffn_post_norm, x);
}

void CpuBackend::experts(const Layer& layer, Rows x) {
  const Rows given = before_norm(x, layer.ffn_post_norm);
  Rows normed = normalise(x, layer.ffn_norm);
  if (layer.shared_down) {
    MlpInput input = mlp_input(normed);
    if (layer.shared_switch) {
      auto* const factors = factors_.as<float>();
      quantised_.assign(normed);
      const DotJob job{.weight = &layer.shared_switch, .y = {factors, x.rows, 1}};
      dot_matmul({&job, 1}, quantised_, threads_);
      for (int r = 0; r < x.rows; ++r) factors[r] = 1.0f / (1.0f + std::exp(-factors[r]));
      input.factors = factors;
    }
    const Rows part = before_norm(given, layer.shared_post_norm, part_);
    mlp_.add({&layer.shared_gate, &layer.shared_up, &layer.shared_down}, input, part);
    add_normed(part, layer.shared_post_norm, given);
  }
  // Where the experts have a norm of their own x is as it was: what is given goes through another one first.
  if (layer.expert_norm) normed = normalise(x, layer.expert_norm);
  const Rows part = before_norm(given, layer.expert_post_norm, part_);
  experts_.add(layer, chunks_, layer.router_norm ? normalise(x, layer.router_norm, routed_) : normed, normed, part);
  add_normed(part, layer.expert_post_norm, given);
  add_normed(given, layer.ffn_post_norm, x);
}

void CpuBackend::finish(const Layer& layer, int index, Rows inputs, Rows x) {
  if (layer.input_gate) {
    const Rows hidden{hidden_.as<float>(), x.rows, hp_.layer_input}, given = before_norm(x, layer.input_norm);
    const Product gate{&layer.input_gate, nullptr, hidden}, proj{&layer.input_proj, nullptr, given, true};
    multiply({&gate, 1}, x);
#pragma omp parallel for schedule(static) num_threads(threads_) if (x.rows > kShortChunk)
    for (int r = 0; r < x.rows; ++r) {
      activate(hp_.activation, hidden.row(r), inputs.row(r) + static_cast<ptrdiff_t>(index) * hidden.width,
               hidden.width, hidden.row(r));
    }
    multiply({&proj, 1}, hidden);
    add_normed(given, layer.input_norm, x);
  }
  for (int r = 0; layer.output_scale && r < x.rows; ++r) scale_by(layer.output_scale.floats()[0], x.width, x.row(r));
}

void CpuBackend::logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) {
  const int vocab = static_cast<int>(output.rows);
  const Rows wanted{normed_.as<float>(), static_cast<int>(batch.logit_rows.size()), x.width};
  for (int i = 0; i < wanted.rows; ++i) {
    rms_norm(x.row(batch.logit_rows[i]), norm.floats(), x.width, hp_.rms_epsilon, wanted.row(i));
  }
  const auto multiply = [&](int begin, int end, bool dots) {
    const Rows from{wanted.row(begin), end - begin, wanted.width};
    const Rows to{logits.data() + static_cast<int64_t>(begin) * vocab, from.rows, vocab};
    if (from.rows == 0) return;
    if (!dots) {
      const GemmJob job{&output, nullptr, to, false};
      return gemm_.run({&job, 1}, to_elements(from), wanted_groups_);
    }
    quantised_.assign(from);
    const DotJob job{&output, nullptr, to, false};
    dot_matmul({&job, 1}, quantised_, threads_);
  };
  // Chunks that want few rows take the dots, even long ones, whose weights would be dequantised for nothing. Every
  // chunk decides for itself, so that its logits do not depend on its company; neighbours that agree go together.
  int begin = 0, end = 0;
  bool dots = true;
  wanted_groups_.clear();
  for (const Chunk& chunk : batch.chunks) {
    int next = end;
    while (next < wanted.rows && batch.logit_rows[next] < chunk.first_row + chunk.rows) ++next;
    const bool few = next - end <= kShortChunk;
    if (next > end && few != dots) {
      multiply(begin, end, dots);
      wanted_groups_.clear();
      begin = end;
      dots = few;
    }
    if (next > end) wanted_groups_.push_back(next - end);
    end = next;
  }
  multiply(begin, end, dots);
  if (hp_.logit_cap == 0) return;
  constexpr int kPiece = 4096;
  const auto count = static_cast<int64_t>(logits.size());
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (int64_t first = 0; first < count; first += kPiece) {
    cap_by(hp_.logit_cap, static_cast<int>(std::min<int64_t>(kPiece, count - first)), logits.data() + first);
  }
}

}  // namespace tidal
