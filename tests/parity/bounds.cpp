#include "parity/bounds.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace tidal::parity {
namespace {

constexpr double kFloat = 0x1p-24;  // largest relative error of rounding to float32
constexpr double kHalf = 0x1p-11;   // float16
constexpr double kBf16 = 0x1p-8;    // bfloat16
constexpr double kChance = 7;       // see the head of bounds.h

double square(double value) { return value * value; }

/// Bounds of the errors e_i of x rounded to ggml's dot type, without what a block has in common.
std::vector<double> dot_rounding(ggml_type type, std::span<const float> x) {
  std::vector<double> errors(x.size(), 0.0);
  const int64_t block = ggml_blck_size(type);
  for (size_t i = 0; i < x.size(); ++i) {
    switch (type) {
      case GGML_TYPE_F32: break;
      case GGML_TYPE_F16: errors[i] = std::abs(x[i]) * kHalf + 0x1p-25; break;
      case GGML_TYPE_BF16: errors[i] = std::abs(x[i]) * kBf16; break;
      case GGML_TYPE_Q8_0:
      case GGML_TYPE_Q8_1:
      case GGML_TYPE_Q8_K: {
        // 255 steps from -max to max of the block: half a step, with room for the rounding of the step itself.
        double largest = 0;
        const size_t begin = i / block * block;
        for (size_t j = begin; j < begin + block; ++j) largest = std::max(largest, std::abs(static_cast<double>(x[j])));
        errors[i] = largest / 254 * 1.0001;
        break;
      }
      default: ADD_FAILURE() << "no bound for activations of type " << ggml_type_name(type);
    }
  }
  return errors;
}

/// Multiplied as they are on the device, by rows of short chunks.
bool stays_quantised(ggml_type type) {
  return std::find(kKeptTypes.begin(), kKeptTypes.end(), type) != kKeptTypes.end();
}

}  // namespace

Rounding rounding_of(const std::string& backend, int rows, ggml_type type) {
  if (backend == "cuda") return rows <= 8 && stays_quantised(type) ? Rounding::Input : Rounding::Bf16;
  if (backend == "cpu") return rows <= 8 ? Rounding::Dot : Rounding::Bf16;
  return Rounding::None;
}

std::vector<double> product_bounds(const HostWeight& weight, std::span<const float> x, Rounding rounding,
                                   std::span<const double> input) {
  const int64_t cols = weight.view.cols;
  const ggml_type dot = ggml_get_type_traits_cpu(weight.view.type)->vec_dot_type;
  std::vector<double> e(cols, 0.0);
  if (rounding == Rounding::Dot) e = dot_rounding(dot, x);
  if (rounding == Rounding::Input || rounding == Rounding::Bf16) {
    const double roundings = rounding == Rounding::Bf16 ? 2 : 1;
    for (int64_t i = 0; i < cols; ++i) e[i] = std::abs(x[i]) * roundings * kBf16;
  }
  if (rounding == Rounding::Input) {
    // Then numbers of 16 bits: of a largest one in [2^e, 2^(e + 1)) of 128 columns half a step of 2^(e - 14).
    for (int64_t begin = 0; begin < cols; begin += 128) {
      const int64_t end = std::min(begin + 128, cols);
      double largest = 0;
      for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(static_cast<double>(x[i])));
      for (int64_t i = begin; i < end; ++i) e[i] += largest * (1 + kBf16) * 0x1p-15;
    }
  }
  // Q8_0 and Q8_1 store the step of a block as float16: an error that the whole block has in common. So does Q8_1 with
  // the sum of the block, which is multiplied with the weights' minimum, itself one of the block's weights.
  const bool half_steps = rounding == Rounding::Dot && (dot == GGML_TYPE_Q8_0 || dot == GGML_TYPE_Q8_1);
  std::vector<double> bounds;
  for (int64_t o = 0; o < weight.view.rows; ++o) {
    const float* w = weight.values.data() + o * cols;
    double worst = 0, squares = 0, before = 0, magnitudes = 0;
    for (int64_t i = 0; i < cols; ++i) {
      worst += std::abs(w[i]) * e[i];
      squares += square(w[i] * e[i]);
      if (!input.empty()) before += square(w[i] * input[i]);
      magnitudes += std::abs(w[i]) * (std::abs(x[i]) + e[i] + (input.empty() ? 0.0 : input[i]));
    }
    for (int64_t begin = 0; half_steps && begin < cols; begin += 32) {
      double sum = 0, plain = 0, largest = 0;
      for (int64_t i = begin; i < begin + 32; ++i) {
        sum += w[i] * x[i];
        plain += x[i];
        largest = std::max(largest, std::abs(static_cast<double>(w[i])));
      }
      const double common = kHalf * (std::abs(sum) + (dot == GGML_TYPE_Q8_1 ? 2 * largest * std::abs(plain) : 0.0)) +
                            0x1p-25 * 127 * 32 * largest;
      worst += common;
      squares += square(common);
    }
    // n roundings of the sum and as many of the products, scales and the norm before.
    const double sums = (2 * cols + 32) * kFloat * magnitudes;
    bounds.push_back(std::min(worst, kChance * std::sqrt(squares)) + std::sqrt(before) + sums);
  }
  return bounds;
}

std::vector<float> normed(std::span<const float> x, const HostWeight& weight) {
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  std::vector<float> result;
  for (size_t i = 0; i < x.size(); ++i) {
    result.push_back(
        static_cast<float>(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5) * weight.values[i]));
  }
  return result;
}

std::vector<float> product(const HostWeight& weight, const HostWeight& bias, std::span<const float> x) {
  std::vector<float> y;
  for (int64_t o = 0; o < weight.view.rows; ++o) {
    double sum = bias.values.empty() ? 0.0 : bias.values[o];
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(weight.values[o * x.size() + i]) * x[i];
    y.push_back(static_cast<float>(sum));
  }
  return y;
}

std::pair<double, double> clamped(Activation activation, float gate, float up) {
  if (activation != Activation::ClampedSwiGlu) return {gate, up};
  return {std::min(gate, 7.0f), std::clamp(up, -7.0f, 7.0f) + 1.0};
}

double activation_exponent(Activation activation, double gate) {
  if (activation == Activation::Silu) return gate;
  if (activation == Activation::ClampedSwiGlu) return 1.702 * gate;
  return 2 * std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
}

Bounded hidden_layer(const HostWeight& gate, const HostWeight& b_gate, const HostWeight& up, const HostWeight& b_up,
                     std::span<const float> x, Rounding rounding, Activation activation) {
  const std::vector<float> gates = product(gate, b_gate, x), ups = product(up, b_up, x);
  const std::vector<double> gate_bounds = product_bounds(gate, x, rounding);
  const std::vector<double> up_bounds = product_bounds(up, x, rounding);
  Bounded hidden;
  for (size_t i = 0; i < gates.size(); ++i) {
    const auto [gate, up] = clamped(activation, gates[i], ups[i]);
    const double exponent = activation_exponent(activation, gate);
    const double activated = gate / (1 + std::exp(-exponent));
    hidden.values.push_back(static_cast<float>(activated * up));
    // The slope of all activations is below 1.13, that of a clamp 1 at most; exp's argument (four operations at most)
    // and result, the division and the product round.
    const double floats = kFloat * (16 + 4 * std::abs(exponent)) * std::abs(hidden.values.back());
    hidden.bounds.push_back(1.13 * gate_bounds[i] * (std::abs(up) + up_bounds[i]) + std::abs(activated) * up_bounds[i] +
                            floats);
  }
  return hidden;
}

std::vector<double> attention_bounds(const float* q, const HostCache& cache, const Chunk& chunk, int kv_head,
                                     std::span<const int32_t> positions, bool bf16, const float* sink, double cap) {
  const int dim = cache.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  const size_t count = positions.size();
  std::vector<double> scores(count), magnitudes(count), squares(count);
  std::vector<float> key(dim), values(count * static_cast<size_t>(dim));
  double top = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < count; ++i) {
    float* const value = values.data() + i * static_cast<size_t>(dim);
    cache.read(chunk, kv_head, positions[i], key.data(), value);
    for (int d = 0; d < dim; ++d) {
      const double product = static_cast<double>(q[d]) * key[d];
      scores[i] += product;
      magnitudes[i] += std::abs(product);
      squares[i] += product * product;
    }
    if (cap > 0) scores[i] = cap * std::tanh(scores[i] / cap);
    top = std::max(top, scores[i]);
  }
  std::vector<double> weights(count);
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weights[i] = std::exp((scores[i] - top) * scale);
  if (sink) total += std::exp(*sink - top * scale);
  std::vector<double> out(dim, 0.0);
  for (size_t i = 0; i < count; ++i) {
    weights[i] /= total;
    for (int d = 0; d < dim; ++d) out[d] += weights[i] * values[i * static_cast<size_t>(dim) + d];
  }
  // A cap makes errors no larger, and has some of its own: cap (2 / (1 + exp(-z)) - 1), where exp is off by 2 units in
  // the last place, sum, quotient and difference by one each, and rounding z, which is small where the slope is not,
  // moves it by another: less than 8.
  const double of_cap = 8 * kFloat * cap * scale;
  // An error d_i of score i moves the output by sum_i p_i d_i (v_i - out).
  std::vector<double> chance(dim, 0.0), certain(dim, 0.0);
  for (size_t i = 0; i < count; ++i) {
    const double rounded_q = bf16 ? kBf16 * scale * std::sqrt(squares[i]) : 0.0;
    // Float32: the sum of the score, the scaled score and its distance to the maximum, exp, the sums over positions.
    const double floats = kFloat * (2 * (dim + 8) * scale * magnitudes[i] +
                                    4 * scale * (std::abs(scores[i]) + std::abs(top)) + 2.0 * count + 64) +
                          2 * of_cap;
    for (int d = 0; d < dim; ++d) {
      const double v = values[i * static_cast<size_t>(dim) + d];
      // 1.1 leaves room for the second order.
      chance[d] += square(weights[i] * rounded_q * 1.1 * (v - out[d]));
      if (bf16) chance[d] += square(weights[i] * kBf16 * v);
      certain[d] += weights[i] * floats * (std::abs(v) + std::abs(out[d]));
    }
  }
  std::vector<double> bounds(dim);
  for (int d = 0; d < dim; ++d) bounds[d] = kChance * std::sqrt(chance[d]) + certain[d] + 1e-30;
  return bounds;
}

std::vector<double> attention_bounds(const Hyperparameters& hp, const HostBatch& batch, const HostCache& cache,
                                     const std::vector<float>& q, bool bf16, const Policy& policy,
                                     const std::vector<int32_t>& selected, const std::vector<float>& sink_logits) {
  std::vector<double> bounds;
  const int units = scope_units(policy.scope, hp.heads, hp.kv_heads);
  for (const Chunk& chunk : batch->chunks) {
    for (int i = 0; i < chunk.rows; ++i) {
      const int row = chunk.first_row + i;
      for (int h = 0; h < hp.heads; ++h) {
        const int first = hp.first_seen(0, chunk.position + i);
        std::vector<int32_t> positions(chunk.position + i + 1 - first);
        std::iota(positions.begin(), positions.end(), first);
        if (batch.sparse(chunk) && !selected.empty()) {
          const size_t unit = static_cast<size_t>(row) * units + h * units / hp.heads;
          const auto begin = selected.begin() + static_cast<ptrdiff_t>(unit * policy.budget);
          positions.assign(begin, begin + policy.budget);
        }
        const float* head = q.data() + static_cast<size_t>(row) * hp.q_width() + h * hp.head_dim;
        const auto own = attention_bounds(head, cache, chunk, h / hp.group(), positions, bf16,
                                          sink_logits.empty() ? nullptr : &sink_logits[static_cast<size_t>(h)],
                                          hp.product_cap(hp.head_dim));
        bounds.insert(bounds.end(), own.begin(), own.end());
      }
    }
  }
  return bounds;
}

bool rounding_decides(std::span<const reference::Scores> own, const Policy& policy, double scale,
                      const std::vector<int32_t>& chosen, double of_scores) {
  const std::vector<float> pooled = reference::pooled_scores(own, policy, scale);
  const Reserved reserved = reserved_positions(policy);
  const int context = static_cast<int>(pooled.size()), last = context - reserved.recent;
  std::vector<bool> in(context, false);
  for (const int32_t p : chosen) in[p] = true;
  // A probability exp(x) / sum: x, a scaled difference, has a few roundings of its terms; exp a few units in the last
  // place; the sum one rounding a term at worst.
  double largest = 0;
  for (const reference::Scores& head : own) {
    for (const float score : head) {
      if (std::isfinite(score)) largest = std::max(largest, std::abs(static_cast<double>(score)) * scale);
    }
  }
  // A score that is off by e is a term that is off by e scale, and so may be the sum.
  const double relative =
      0x1p-24 * (4 * largest + 16 + context + static_cast<double>(own.size())) + 2 * of_scores * scale;
  for (int a = reserved.sinks; a < last; ++a) {
    if (!in[a]) continue;
    for (int b = reserved.sinks; b < last; ++b) {
      if (in[b] || pooled[a] - pooled[b] > relative * (pooled[a] + pooled[b])) continue;
      // Equal scores in every head are rounded alike: then the lower position wins on every backend.
      const bool same = std::all_of(own.begin(), own.end(), [&](const reference::Scores& head) {
        return head[a] == head[b] || (std::isnan(head[a]) && std::isnan(head[b]));
      });
      if (!same) return true;
    }
  }
  return false;
}

std::vector<double> norm_bounds(std::span<const float> x, std::span<const double> bounds,
                                std::span<const float> weight) {
  double squares = 0, errors = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    squares += square(x[i]);
    errors += square(bounds[i]);
  }
  // |d norm| <= |d x|, so the factor's relative error is at most that of the norm.
  const double relative = std::sqrt(errors / squares) + (static_cast<double>(x.size()) + 8) * kFloat;
  const double factor = std::sqrt(static_cast<double>(x.size()) / squares) * (1 + relative);
  std::vector<double> result;
  for (size_t i = 0; i < x.size(); ++i) {
    result.push_back(factor * std::abs(weight[i]) * (bounds[i] + std::abs(x[i]) * relative));
  }
  return result;
}

}  // namespace tidal::parity
