// The selection of a Scan layer: scores from sketches, pooled probabilities, top positions.
#pragma once

#include <vector>

#include "backend/batch.h"
#include "backend/cpu/completion.h"
#include "backend/cpu/selector.h"

namespace tidal {

class Scan {
 public:
  Scan(int threads, Selector& selector) : threads_(threads), selector_(selector) {}

  void reserve(const Hyperparameters& hp, int max_context);
  /// Selects for the row of a chunk, by scan_policy(). q: [heads, head_dim]; cap: of q.k, 0: none; scores: work space
  /// [heads, stride].
  void select(const Chunk& chunk, const float* q, const KvLayer& kv, float cap, float* scores, int64_t stride,
              const Selection& selection);
  /// The same of a chunk with a Completion, by `completer`, which then has the part of what is not selected. Returns
  /// false where scores are not finite, or so far above the first block's that their terms are not: then the selection
  /// is as without one, and there is no part.
  bool complete(const Chunk& chunk, const float* q, const KvLayer& kv, float* scores, int64_t stride,
                const KvRequests& requests, Completer& completer, const Selection& selection);

 private:
  /// The row in work.
  struct Row {
    const Chunk* chunk;
    const float* q;
    const KvLayer* kv;
    float cap;
    float* scores;
    int64_t stride;
  };

  /// The terms of the row in place of its scores, and the factors. Returns false where a head's are not finite.
  bool make_terms(const Row& row);
  void divide(int context);
  /// Raw scores of the positions [begin, end), of full blocks alone or of the one still filling, for the query heads of
  /// one KV head; with `sum` [group] their terms and the sums of those.
  void score(const Row& row, int kv_head, int begin, int end, float* sum);
  /// References of a KV head's query heads: what they give the first block.
  void find_references(const Row& row, int kv_head);
  /// From the sums of the pieces to the factors of the terms. Returns false where a head's are not finite.
  bool find_factors();
  void select_by_scores(const Row& row, const Policy& policy, const Selection& selection);
  int begin_of(int piece) const { return piece == 0 ? 0 : ends_[piece - 1]; }

  int threads_;
  Selector& selector_;
  int heads_ = 0, group_ = 0, head_dim_ = 0;
  float scale_ = 1;
  std::vector<int> ends_;                       // position behind each piece: of full blocks, then of the one filling
  std::vector<float> reference_;                // [heads], about the highest score * scale of the row
  std::vector<float> sums_;                     // [kv_heads, pieces, group], of terms
  std::vector<float> factors_;                  // [heads], 1 / the sum of all terms
  std::vector<float> head_maximum_, head_sum_;  // [heads], of raw scores
};

}  // namespace tidal
