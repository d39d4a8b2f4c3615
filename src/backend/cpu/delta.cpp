#include "backend/cpu/delta.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/delta_ops.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kMostTaps = 64;  // as hyperparameters.cpp lets through
constexpr int kColumns = 32;   // of S, that a thread takes at once
constexpr int kFewRows = 8;    // of all chunks, for which threads take longer to begin than to do what is elementwise

}  // namespace

void DeltaRule::reserve(const Hyperparameters& hp, int max_rows) {
  net_ = hp.delta;
  if (!net_) return;
  const auto floats = [&](int width) {
    return allocate_memory(sizeof(float) * static_cast<size_t>(max_rows) * static_cast<size_t>(width), "activations");
  };
  mixed_ = floats(net_.mixed_width());
  convolved_ = floats(net_.mixed_width());
  gates_ = floats(net_.value_width());
  read_ = floats(net_.value_width());
  beta_ = floats(net_.value_heads);
  alpha_ = floats(net_.value_heads);
}

DeltaRule::Inputs DeltaRule::inputs(int rows) const {
  return {.mixed = {mixed_.as<float>(), rows, net_.mixed_width()},
          .gates = {gates_.as<float>(), rows, net_.value_width()},
          .beta = {beta_.as<float>(), rows, net_.value_heads},
          .alpha = {alpha_.as<float>(), rows, net_.value_heads}};
}

void DeltaRule::convolve(const Hyperparameters& hp, const DeltaWeights& weights, const Chunk& chunk, float* tail) {
  const int width = net_.mixed_width(), dim = net_.head_dim, before = net_.taps - 1;
  const Rows mixed = inputs(chunk.first_row + chunk.rows).mixed;
  const Rows convolved{convolved_.as<float>(), mixed.rows, width};
  const float query_scale = 1.0f / std::sqrt(static_cast<float>(dim));
  // A head's part of q, k and v.
#pragma omp parallel for schedule(static) num_threads(threads_) if (chunk.rows > kFewRows)
  for (int first = 0; first < width; first += dim) {
    const float* taps = weights.taps.floats() + int64_t{first} * net_.taps;
    std::array<const float*, kMostTaps> rows;
    for (int r = 0; r < chunk.rows; ++r) {
      for (int t = 0; t <= before; ++t) {
        const int from = r + t - before;
        rows[t] = (from < 0 ? tail + int64_t{from + before} * width : mixed.row(chunk.first_row + from)) + first;
      }
      float* to = convolved.row(chunk.first_row + r) + first;
      convolve_silu(rows.data(), taps, net_.taps, dim, to);
      if (first < net_.key_width()) scale_to_length(to, dim, hp.rms_epsilon, query_scale);
      if (first >= net_.key_width() && first < 2 * net_.key_width()) scale_to_length(to, dim, hp.rms_epsilon, 1.0f);
    }
    for (int t = 0; t < before; ++t) {  // in this order none is overwritten before it is read
      const int from = chunk.rows + t - before;
      const float* row = from < 0 ? tail + int64_t{from + before} * width : mixed.row(chunk.first_row + from);
      std::copy_n(row + first, dim, tail + int64_t{t} * width + first);
    }
  }
}

void DeltaRule::factors(const DeltaWeights& weights, int rows) {
  const Inputs in = inputs(rows);
#pragma omp parallel for schedule(static) num_threads(threads_) if (rows > kFewRows)
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < net_.value_heads; ++h) {
      // In double: what is kept is near to 1, and multiplied up over thousands of rows.
      const double alpha = static_cast<double>(in.alpha.row(r)[h]) + weights.alpha_bias.floats()[h];
      const double softplus = std::max(alpha, 0.0) + std::log1p(std::exp(-std::abs(alpha)));
      in.alpha.row(r)[h] = static_cast<float>(std::exp(weights.decay.floats()[h] * softplus));
      in.beta.row(r)[h] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(in.beta.row(r)[h]))));
    }
  }
}

void DeltaRule::recur(const Batch& batch, int index) {
  const int dim = net_.head_dim, pieces = (dim + kColumns - 1) / kColumns;
  const int items = net_.value_heads * pieces, chunks = static_cast<int>(batch.chunks.size());
  const Inputs in = inputs(batch.rows());
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(threads_)
  for (int c = 0; c < chunks; ++c) {
    for (int item = 0; item < items; ++item) {
      const Chunk& chunk = batch.chunks[static_cast<size_t>(c)];
      const int head = item / pieces, first = item % pieces * kColumns;
      const float* row = convolved_.as<float>() + int64_t{chunk.first_row} * net_.mixed_width();
      const float* query = row + int64_t{net_.key_head(head)} * dim;
      const int64_t own = int64_t{head} * dim;
      delta_rows({.rows = chunk.rows,
                  .dim = dim,
                  .q = query,
                  .k = query + net_.key_width(),
                  .v = row + 2 * net_.key_width() + own,
                  .stride = net_.mixed_width(),
                  .kept = in.alpha.row(chunk.first_row) + head,
                  .written = in.beta.row(chunk.first_row) + head,
                  .factor_stride = net_.value_heads,
                  .s = chunk.state + index * net_.state_elements() + net_.tail_elements() + own * dim,
                  .out = read_.as<float>() + int64_t{chunk.first_row} * net_.value_width() + own,
                  .out_stride = net_.value_width()},
                 first, std::min(kColumns, dim - first));
    }
  }
}

Rows DeltaRule::run(const Hyperparameters& hp, const DeltaWeights& weights, const Batch& batch, int index) {
  for (const Chunk& chunk : batch.chunks) {
    float* state = chunk.state + index * net_.state_elements();
    if (chunk.position == 0) std::fill_n(state, net_.state_elements(), 0.0f);
    convolve(hp, weights, chunk, state);
  }
  factors(weights, batch.rows());
  recur(batch, index);
  const Rows gates = inputs(batch.rows()).gates;
#pragma omp parallel for schedule(static) num_threads(threads_) if (gates.rows > kFewRows)
  for (int r = 0; r < gates.rows; ++r) {
    for (int first = 0; first < gates.width; first += net_.head_dim) {
      float* read = read_.as<float>() + int64_t{r} * gates.width + first;
      float* gate = gates.row(r) + first;
      rms_norm(read, weights.norm.floats(), net_.head_dim, hp.rms_epsilon, read);
      activate(Activation::Silu, gate, read, net_.head_dim, gate);
    }
  }
  return gates;
}

}  // namespace tidal
