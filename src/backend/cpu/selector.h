// From the scores of a Select or Scan layer to selected positions.
#pragma once

#include <utility>
#include <vector>

#include "backend/batch.h"
#include "core/buffer.h"

namespace tidal {

/// What dense attention leaves behind of one row, or a scan.
struct RowScores {
  const float* scores = nullptr;  ///< raw q.k, head h at scores + h * stride, one per position
  int64_t stride = 0;
  const float* maximum = nullptr;  ///< [heads], of score * scale
  const float* sum = nullptr;      ///< [heads], of exp(score * scale - maximum)
  float scale = 1;
};

/// The terms of each head's softmax: the probability of position p is terms[h * stride + p] * factors[h].
struct RowTerms {
  const float* terms = nullptr;
  int64_t stride = 0;
  const float* factors = nullptr;  ///< [heads]
};

/// The positions of a set by `ranking` [context], as backend/policy.h says, but for top_p: policy.budget of them.
void take_positions(const Policy& policy, const float* ranking, int context, int32_t* positions);

/// Pools scores by the policy's scope and takes the top positions. Follows the rules in backend/policy.h.
class Selector {
 public:
  explicit Selector(int threads) : threads_(threads) {}

  void reserve(const Hyperparameters& hp, int max_context);
  /// Fills the units of a sparse chunk in `selection`, by `policy`: the chunk's, or scan_policy() of it.
  void select(const RowScores& scores, const Chunk& chunk, const Policy& policy, const Selection& selection);
  /// The same from the terms of finite softmaxes, for a policy that takes_terms().
  void select(const RowTerms& terms, const Chunk& chunk, const Policy& policy, const Selection& selection);
  bool takes_terms(const Policy& policy) const {
    return policy.pooling == Pooling::Sum && pools(policy.scope, heads_, kv_heads_);
  }

  // The steps of it, for who goes on from what is pooled.

  int heads() const { return heads_; }
  void begin(const Chunk& chunk) { context_ = chunk.context(); }
  int ranges() const;  ///< that pool() takes one of
  /// Pools the terms of a set's `heads` heads in a range, and returns its positions, [begin, end).
  std::pair<int, int> pool(const RowTerms& terms, int unit, int heads, int range);
  /// What the positions of a set are ranked by, [context].
  const float* ranking(int unit) const { return pooled_.as<float>() + static_cast<int64_t>(unit) * max_context_; }

 private:
  void pool(const RowScores& scores, int first_head, int heads, int begin, int end, Pooling pooling, float* pooled);
  /// The positions of one set, by `ranking` [context].
  void take(const float* ranking, const Chunk& chunk, const Policy& policy, int unit, const Selection& selection);
  float* pooled(int unit) { return pooled_.as<float>() + static_cast<int64_t>(unit) * max_context_; }
  /// Keeps of `count` ascending positions, all but the reserved ones chosen by `ranking`, as few as hold top_p of the
  /// set's `mass` [context]. Returns how many.
  int keep_mass(const Policy& policy, const float* ranking, const float* mass, int32_t* positions, int unit);

  int threads_;
  int heads_ = 0, kv_heads_ = 0, max_context_ = 0;
  int context_ = 0;                           // of the row in work
  Buffer pooled_;                             // [heads, max_context], of as many heads as there are sets
  std::vector<std::vector<int32_t>> ranked_;  // [heads], work space of keep_mass()
};

}  // namespace tidal
