// The selection of a Scan layer: scores from sketches, pooled probabilities, top positions.
#pragma once

#include <vector>

#include "backend/batch.h"
#include "backend/cpu/selector.h"

namespace tidal {

class Scan {
 public:
  Scan(int threads, Selector& selector) : threads_(threads), selector_(selector) {}

  void reserve(const Hyperparameters& hp, int max_context);
  /// Selects for the row of a chunk, by scan_policy(). q: [heads, head_dim]; scores: work space [heads, stride].
  void select(const Chunk& chunk, const float* q, const KvLayer& kv, float* scores, int64_t stride,
              const Selection& selection);

 private:
  /// The row in work.
  struct Row {
    const Chunk* chunk;
    const float* q;
    const KvLayer* kv;
    float* scores;
    int64_t stride;
  };

  void divide(int context);
  /// Raw scores of a piece for the query heads of one KV head.
  void score(const Row& row, int kv_head, int piece);
  /// The same, then softmax terms in their place.
  void make_terms(const Row& row, int kv_head, int piece);
  /// From the statistics of the pieces to the factors of their terms. Returns false where a head's are not finite.
  bool find_factors();
  void select_by_scores(const Row& row, const Policy& policy, const Selection& selection);

  int threads_;
  Selector& selector_;
  int heads_ = 0, group_ = 0, head_dim_ = 0;
  float scale_ = 1;
  std::vector<int> ends_;             // position behind each piece: of full blocks, then of the block still filling
  std::vector<float> maximum_, sum_;  // [heads, pieces], of softmax_terms()
  std::vector<float> factors_;        // [heads, pieces]
  std::vector<float> head_maximum_, head_sum_;  // [heads], of raw scores
};

}  // namespace tidal
