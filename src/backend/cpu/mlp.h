// The MLP of a layer: rows of short chunks by quantised dots, those of long ones by bf16 products.
#pragma once

#include <span>

#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/gemm.h"
#include "backend/hyperparameters.h"

namespace tidal {

/// gate and up [ffn, width], down [width, ffn]; biases may be null or absent.
struct MlpWeights {
  const Weight *gate, *up, *down;
  const Weight *b_gate = nullptr, *b_up = nullptr, *b_down = nullptr;
};

/// Rows that an MLP starts from.
struct MlpInput {
  Rows normed;                          ///< [rows, width]
  int short_rows = 0;                   ///< of them, at the beginning, those of short chunks
  const std::byte* elements = nullptr;  ///< the others in the products' element type
  std::span<const int> long_chunks;     ///< how many of the others belong to each long chunk
  const float* factors = nullptr;       ///< [rows], of what is added; null: 1
  Activation activation = Activation::Silu;
};

/// to [count]: the hidden layer of gate and up in the products' element type; gate may be changed.
void store_hidden(Activation activation, const GemmElements& elements, float* gate, const float* up, int count,
                  std::byte* to);

class Mlp {
 public:
  Mlp(int threads, Gemm& gemm) : threads_(threads), gemm_(gemm) {}

  /// Makes room for hidden layers of `ffn` elements.
  void reserve(int max_rows, int width, int ffn);
  /// x += factor * (down(hidden(gate n + bias, up n + bias)) + bias).
  void add(const MlpWeights& weights, const MlpInput& input, Rows x);

 private:
  void add_short(const MlpWeights& weights, const MlpInput& input, Rows x);
  void add_long(const MlpWeights& weights, const MlpInput& input, Rows x);

  int threads_;
  Gemm& gemm_;
  QuantisedRows quantised_;
  Buffer hidden_;    // short rows: gate and up, [rows, ffn] each
  Buffer elements_;  // long rows: [rows, ffn] in the products' element type
};

}  // namespace tidal
