#include "backend/reference/math.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tidal::reference {

void dequantise(const Weight& weight, int64_t row, float* to) {
  if (weight.type == GGML_TYPE_F32) {
    std::copy_n(reinterpret_cast<const float*>(weight.row(row)), weight.cols, to);
  } else {
    ggml_get_type_traits(weight.type)->to_float(weight.row(row), to, weight.cols);
  }
}

void multiply(const Weight& weight, const Weight& bias, Rows x, Rows y) {
  std::vector<float> w(weight.cols);
  for (int64_t o = 0; o < weight.rows; ++o) {
    dequantise(weight, o, w.data());
    for (int r = 0; r < x.rows; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < weight.cols; ++i) sum += static_cast<double>(w[i]) * x.row(r)[i];
      y.row(r)[o] = static_cast<float>(sum * weight.scale + (bias ? bias.floats()[o] : 0.0));
    }
  }
}

void rms_norm(const float* x, const Weight& weight, int count, float epsilon, float* out) {
  double squares = 0;
  for (int i = 0; i < count; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double factor = 1.0 / std::sqrt(squares / count + epsilon);
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(x[i] * factor * (weight ? weight.floats()[i] : 1.0f));
}

float capped(float x, float cap) { return cap == 0 ? x : cap * std::tanh(x / cap); }

float activate(Activation activation, float gate, float up) {
  const auto swish = [&](float exponent) { return gate / (1.0f + std::exp(-exponent)) * up; };
  switch (activation) {
    case Activation::Silu: return swish(gate);
    case Activation::Gelu: {
      const float root = std::sqrt(2 * std::numbers::inv_pi_v<float>);
      return swish(2 * root * (gate + 0.044715f * gate * gate * gate));
    }
    case Activation::ClampedSwiGlu:
      gate = std::min(gate, kClampedLimit);
      up = std::clamp(up, -kClampedLimit, kClampedLimit) + 1;
      return swish(kClampedSlope * gate);
  }
  return 0;
}

Matrix hidden_layer(Activation activation, const Weight& gate, const Weight& gate_bias, const Weight& up,
                    const Weight& up_bias, Rows x) {
  const int width = static_cast<int>(gate.rows);
  Matrix hidden(x.rows, width);
  const Matrix factors(x.rows, width);
  multiply(gate, gate_bias, x, hidden);
  multiply(up, up_bias, x, factors);
  for (int r = 0; r < x.rows; ++r) {
    for (int i = 0; i < width; ++i) {
      float& value = hidden->row(r)[i];
      value = activate(activation, value, factors->row(r)[i]);
    }
  }
  return hidden;
}

void rotate(float* head, int position, const Rope& rope) {
  const int pairs = rope.dims / 2;
  for (int i = 0; i < pairs; ++i) {
    const double angle = position * rope.frequencies[i];
    const double c = std::cos(angle) * rope.magnitude;
    const double s = std::sin(angle) * rope.magnitude;
    float& a = rope.pairing == Rope::Pairing::Halves ? head[i] : head[2 * i];
    float& b = rope.pairing == Rope::Pairing::Halves ? head[i + pairs] : head[2 * i + 1];
    const double x = a, y = b;
    a = static_cast<float>(x * c - y * s);
    b = static_cast<float>(x * s + y * c);
  }
}

}  // namespace tidal::reference
