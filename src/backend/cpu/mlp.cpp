#include "backend/cpu/mlp.h"

#include "backend/cpu/memory.h"
#include "backend/cpu/rounded_rows.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {

void store_hidden(Activation activation, const GemmElements& elements, float* gate, const float* up, int count,
                  std::byte* to) {
  if (elements.bf16() && has_rounded_rows()) {
    activate_to_bf16(activation, gate, up, count, reinterpret_cast<Bf16*>(to));
  } else {
    activate(activation, gate, up, count, gate);
    elements.store(gate, count, to);
  }
}

void Mlp::reserve(int max_rows, int width, int ffn) {
  const size_t rows = static_cast<size_t>(max_rows);
  hidden_ = allocate_memory(sizeof(float) * rows * 2 * ffn, "activations");
  elements_ = allocate_memory(gemm_.elements().bytes() * rows * ffn, "activations");
  quantised_.reserve(max_rows, std::max(width, ffn));
}

void Mlp::add(const MlpWeights& weights, const MlpInput& input, Rows x) {
  if (input.short_rows > 0) add_short(weights, input, x);
  if (input.short_rows < x.rows) add_long(weights, input, x);
}

void Mlp::add_short(const MlpWeights& w, const MlpInput& input, Rows x) {
  const int rows = input.short_rows, ffn = static_cast<int>(w.gate->rows);
  const Rows gate{hidden_.as<float>(), rows, ffn};
  const Rows up{gate.row(rows), rows, ffn};
  quantised_.assign({input.normed.data, rows, input.normed.width});
  const DotJob jobs[] = {{.weight = w.gate, .bias = w.b_gate, .y = gate}, {.weight = w.up, .bias = w.b_up, .y = up}};
  dot_matmul(jobs, quantised_, threads_);
  for (int r = 0; r < rows; ++r) {
    activate(input.activation, gate.row(r), up.row(r), ffn, gate.row(r));
    if (input.factors) scale_by(input.factors[r], ffn, gate.row(r));
  }
  quantised_.assign(gate);
  const DotJob job{.weight = w.down, .bias = w.b_down, .y = {x.data, rows, x.width}, .add = true};
  dot_matmul({&job, 1}, quantised_, threads_);
}

void Mlp::add_long(const MlpWeights& w, const MlpInput& input, Rows x) {
  const GemmElements& elements = gemm_.elements();
  const Rows longs{x.row(input.short_rows), x.rows - input.short_rows, x.width};
  const auto ffn = static_cast<size_t>(w.gate->rows);
  std::byte* const hidden = elements_.as<std::byte>();
  gemm_.run_pair(*w.gate, *w.up, input.elements, input.long_chunks, [&](int first, int count, float* gate, float* up) {
    for (int r = 0; r < longs.rows; ++r, gate += count, up += count) {
      if (w.b_gate && *w.b_gate) add_to(w.b_gate->floats() + first, count, gate);
      if (w.b_up && *w.b_up) add_to(w.b_up->floats() + first, count, up);
      if (input.factors) scale_by(input.factors[input.short_rows + r], count, up);
      std::byte* const to = hidden + elements.bytes() * (static_cast<size_t>(r) * ffn + first);
      store_hidden(input.activation, elements, gate, up, count, to);
    }
  });
  const GemmJob job{w.down, w.b_down, longs, true};
  gemm_.run({&job, 1}, hidden, input.long_chunks);
}

}  // namespace tidal
