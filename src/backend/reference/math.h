// The arithmetic of the reference backend: plain loops, sums in double.
#pragma once

#include <vector>

#include "backend/batch.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal::reference {

/// Activations [rows, width] that own their memory.
class Matrix {
 public:
  Matrix(int rows, int width) : values_(static_cast<size_t>(rows) * width), view_{values_.data(), rows, width} {}
  Matrix(Matrix&&) = default;
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  operator Rows() const { return view_; }
  const Rows* operator->() const { return &view_; }

 private:
  std::vector<float> values_;
  Rows view_;
};

/// One row of a matrix of any type as float32: to [cols].
void dequantise(const Weight& weight, int64_t row, float* to);
/// y = W x + bias for every row; the bias may be absent. x [rows, W.cols], y [rows, W.rows].
void multiply(const Weight& weight, const Weight& bias, Rows x, Rows y);
/// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]; `out` may be `x`, an absent weight is 1.
void rms_norm(const float* x, const Weight& weight, int count, float epsilon, float* out);
/// cap * tanh(x / cap); a cap of 0 is none.
float capped(float x, float cap);
/// What a hidden layer makes of one gate and up.
float activate(Activation activation, float gate, float up);
/// The hidden layer of gate x + its bias and up x + its bias for every row: [rows, gate.rows]; biases may be absent.
Matrix hidden_layer(Activation activation, const Weight& gate, const Weight& gate_bias, const Weight& up,
                    const Weight& up_bias, Rows x);

/// Rotates the first rope.dims elements of one head by the angles of `position`.
void rotate(float* head, int position, const Rope& rope);

}  // namespace tidal::reference
