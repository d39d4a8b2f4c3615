#include "backend/reference/delta.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tidal::reference {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// silu(convolution) of the row and of the taps - 1 before it, which the tail remembers: [mixed_width].
std::vector<float> convolve(const DeltaNet& net, const Weight& taps, const float* row, float* tail) {
  const int width = net.mixed_width(), before = net.taps - 1;
  std::vector<float> result(width);
  for (int c = 0; c < width; ++c) {
    const float* tap = taps.floats() + int64_t{c} * net.taps;
    double sum = static_cast<double>(tap[before]) * row[c];
    for (int t = 0; t < before; ++t) sum += static_cast<double>(tap[t]) * tail[int64_t{t} * width + c];
    result[c] = static_cast<float>(sum * sigmoid(sum));
  }
  std::copy(tail + width, tail + net.tail_elements(), tail);  // one row on
  std::copy_n(row, width, tail + net.tail_elements() - width);
  return result;
}

/// Every head of `count` elements to length 1.
void to_unit_length(float* heads, int width, int count, double epsilon) {
  for (float* head = heads; head < heads + width; head += count) {
    double squares = 0;
    for (int i = 0; i < count; ++i) squares += static_cast<double>(head[i]) * head[i];
    for (int i = 0; i < count; ++i) head[i] = static_cast<float>(head[i] / std::sqrt(squares + epsilon));
  }
}

}  // namespace

void delta_row(const DeltaNet& net, const DeltaWeights& weights, const DeltaRow& row, float epsilon, float* state,
               float* out) {
  const int dim = net.head_dim;
  std::vector<float> mixed = convolve(net, weights.taps, row.mixed, state);
  to_unit_length(mixed.data(), 2 * net.key_width(), dim, epsilon);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  for (int h = 0; h < net.value_heads; ++h) {
    const float* q = mixed.data() + int64_t{net.key_head(h)} * dim;
    const float* k = q + net.key_width();
    const float* v = mixed.data() + int64_t{2} * net.key_width() + int64_t{h} * dim;
    float* s = state + net.tail_elements() + int64_t{h} * dim * dim;  // [key element, value element]
    const double softplus = std::log1p(std::exp(-std::abs(double{row.alpha[h]} + weights.alpha_bias.floats()[h]))) +
                            std::max(0.0, double{row.alpha[h]} + weights.alpha_bias.floats()[h]);
    const double kept = std::exp(weights.decay.floats()[h] * softplus), written = sigmoid(row.beta[h]);
    for (int j = 0; j < dim; ++j) {
      double expected = 0, read = 0;  // of the value, what S says to the key
      for (int i = 0; i < dim; ++i) expected += kept * s[i * dim + j] * k[i];
      const double correction = written * (v[j] - expected);
      for (int i = 0; i < dim; ++i) {
        s[i * dim + j] = static_cast<float>(kept * s[i * dim + j] + k[i] * correction);
        read += static_cast<double>(s[i * dim + j]) * q[i];
      }
      out[h * dim + j] = static_cast<float>(read * scale);
    }
  }
}

}  // namespace tidal::reference
