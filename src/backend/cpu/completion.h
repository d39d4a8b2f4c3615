// A Scan layer that estimates what it does not select (Completion): its tiers, and what the two outer ones add.
#pragma once

#include <vector>

#include "backend/batch.h"
#include "backend/cpu/attend_rows.h"
#include "backend/cpu/kv_requests.h"
#include "backend/cpu/selector.h"

namespace tidal {

/// The terms that a scan has made of the scores of a row: 2^(score * scale - reference).
struct ScanRow {
  const Chunk* chunk = nullptr;
  const float* q = nullptr;  ///< [heads, head_dim]
  const KvLayer* kv = nullptr;
  float* terms = nullptr;  ///< [heads, stride]
  int64_t stride = 0;
  float scale = 1;
  const float* references = nullptr;  ///< [heads]
  const float* factors = nullptr;     ///< [heads], 1 / the sum of a head's terms
};

class Completer {
 public:
  Completer(int threads, Selector& selector) : threads_(threads), selector_(selector) {}

  /// Selects for the row, and makes part() of what it does not select. Work is cut by the context alone, so results do
  /// not depend on threads.
  void complete(const ScanRow& row, const KvRequests& requests, const Selection& selection);
  /// Of the query heads from `first_head` on, as of other rows of the cache.
  AttentionPart part(int first_head) {
    return {outputs_.data() + static_cast<ptrdiff_t>(first_head) * head_dim_, maximum_.data() + first_head,
            sums_.data() + first_head};
  }

 private:
  static constexpr int32_t kScan = -1, kSelected = -2;
  /// Work space of one KV head; positions are ascending.
  struct Set {
    std::vector<int32_t> estimated, ranked;
    std::vector<float> pooled;            // of `estimated`, then of `ranked`
    std::vector<const std::byte*> rows;   // of `ranked`
    std::vector<const std::byte*> codes;  // of the estimated ones that have a sketch, the first ones
    std::vector<const Bf16*> scales;      // and their scales
    std::vector<float> scores;            // [group, ranked], by keys; then their terms
    std::vector<int32_t> sources;         // of the estimated ones' weights: which of `ranked`, kScan or kSelected
    std::vector<float> taken, added;      // of the blocks of one head: terms of estimated positions, their weights
    std::vector<float> weights;           // [group, estimated], of those not selected
  };

  void take_shape(const ScanRow& row);
  void choose(const ScanRow& row, const KvRequests& requests, int kv_head, const Selection& selection);
  /// Where the codes of the estimated positions are.
  void find_codes(const ScanRow& row, int kv_head, Set& set);
  /// The scores of the ranked positions by their keys, as terms, and what they are ranked by.
  void rank(const ScanRow& row, const KvRequests& requests, int kv_head, Set& set);
  /// Where the estimated positions have their weights from.
  static void find_sources(Set& set, std::span<const int32_t> selected);
  /// The weights of estimated positions and of means, and their statistics, of one query head.
  void weigh(const ScanRow& row, int head, Set& set);
  void add_estimates(int kv_head, Set& set);
  void add_means(const ScanRow& row, int kv_head, int piece);
  float* block_weights(int head) { return block_weights_.data() + static_cast<ptrdiff_t>(head) * blocks_; }

  int threads_;
  Selector& selector_;
  int heads_ = 0, group_ = 0, head_dim_ = 0;
  int blocks_ = 0, pieces_ = 0;        // full blocks, and pieces of them
  std::vector<Set> sets_;              // [kv_heads]
  std::vector<float> block_weights_;   // [heads, blocks_]: the sums of the terms, then what means are multiplied by
  std::vector<float> piece_outputs_;   // [kv_heads, pieces_, group_, head_dim_]
  std::vector<float> outputs_;         // [heads, head_dim_]
  std::vector<float> maximum_, sums_;  // [heads]
};

}  // namespace tidal
