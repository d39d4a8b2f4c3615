// Matrix products of a few rows by quantised dot products, the way to decode: our own for weights in blocks of 32
// (block_dots.h), ggml's for all others.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "backend/cpu/short_chunk.h"
#include "backend/weights.h"
#include "core/buffer.h"

namespace tidal {

/// Rows of activations, quantised once for every type of dot product that asks.
class QuantisedRows {
 public:
  /// Makes room for `rows` rows of `width` elements.
  void reserve(int rows, int width);
  /// From now on stands for `x`, which must stay as it is until the next assign().
  void assign(Rows x);
  int rows() const { return x_.rows; }
  /// Quantises for dot products with weights of `type`, unless that has been done since assign().
  void prepare(ggml_type type, int threads);
  /// Row `index` in the form that goes with weights of `type`; prepare() must have been called for it.
  const std::byte* row(ggml_type type, int index) const;

 private:
  /// ActivationPairs where the weights have a kernel in block_dots.h, else ggml's own type for these weights.
  struct Form {
    ggml_type weights;  // one of the types of weights that share the form
    bool ready;
    Buffer data;
  };
  static bool shared(ggml_type a, ggml_type b);
  static size_t row_bytes(ggml_type weights, int64_t width);
  Form& form(ggml_type weights);
  Buffer memory(ggml_type weights) const;

  Rows x_;
  int max_rows_ = 0;
  int max_width_ = 0;
  std::vector<Form> forms_;
};

/// y = W x + bias, or y += W x + bias.
struct DotJob {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;  ///< null or an absent weight: none
  Rows y;                        ///< [rows, weight->rows]
  bool add = false;
  std::span<const int32_t> rows = {};  ///< of the activations, the i-th to row i of y; empty: all of them
};

/// Runs the jobs on the same activations with all threads.
void dot_matmul(std::span<const DotJob> jobs, QuantisedRows& x, int threads);

}  // namespace tidal
