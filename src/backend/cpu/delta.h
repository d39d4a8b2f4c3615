// A recurrent layer between its projections: convolution, gated delta rule and gated norm.
#pragma once

#include "backend/batch.h"
#include "backend/hyperparameters.h"
#include "backend/weights.h"
#include "core/buffer.h"

namespace tidal {

/// Threads share out the heads, and columns of their matrices; rows follow each other. So what a row gets depends on
/// its own chunk alone, and not on how many rows that has.
class DeltaRule {
 public:
  explicit DeltaRule(int threads) : threads_(threads) {}

  /// Makes room; nothing where the model has no recurrent layers.
  void reserve(const Hyperparameters& hp, int max_rows);

  /// Where the projections of `rows` rows go.
  struct Inputs {
    Rows mixed;        ///< [rows, mixed_width]
    Rows gates;        ///< [rows, value_width]
    Rows beta, alpha;  ///< [rows, value_heads] twice
  };
  Inputs inputs(int rows) const;
  /// The output before its projection [rows, value_width], in place of the gates. `index` as of Backend::delta().
  Rows run(const Hyperparameters& hp, const DeltaWeights& weights, const Batch& batch, int index);

 private:
  void convolve(const Hyperparameters& hp, const DeltaWeights& weights, const Chunk& chunk, float* tail);
  void factors(const DeltaWeights& weights, int rows);
  void recur(const Batch& batch, int index);

  int threads_;
  DeltaNet net_;
  Buffer mixed_, convolved_;  // [rows, mixed_width]
  Buffer gates_, read_;       // [rows, value_width]
  Buffer beta_, alpha_;       // [rows, value_heads]
};

}  // namespace tidal
