#include "backend/cpu/selector.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/memory.h"
#include "backend/cpu/top_k.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kPoolPiece = 1024;  // positions that one thread pools at a time

// Softmax probabilities of a head whose scores are not all finite; rare, so plain code. NaN counts as -infinity, and
// positions at +infinity share everything.
void pool_infinite(const float* scores, int context, int begin, int end, float scale, float* pooled) {
  const float infinity = std::numeric_limits<float>::infinity();
  float maximum = -infinity;
  for (int i = 0; i < context; ++i) {
    if (scores[i] > maximum) maximum = scores[i];
  }
  if (maximum == -infinity) return;
  const auto share = [&](float score) {
    if (maximum == infinity) return score == infinity ? 1.0f : 0.0f;
    return std::isnan(score) ? 0.0f : std::exp(score * scale - maximum * scale);
  };
  float sum = 0;
  for (int i = 0; i < context; ++i) sum += share(scores[i]);
  for (int i = begin; i < end; ++i) pooled[i - begin] += share(scores[i]) / sum;
}

}  // namespace

void take_positions(const Policy& policy, const float* ranking, int context, int32_t* positions) {
  const Reserved reserved = reserved_positions(policy);
  const int chosen = policy.budget - reserved.sinks - reserved.recent;
  for (int i = 0; i < reserved.sinks; ++i) *positions++ = i;
  top_k(ranking, reserved.sinks, context - reserved.sinks - reserved.recent, chosen, positions);
  positions += chosen;
  for (int i = context - reserved.recent; i < context; ++i) *positions++ = i;
}

void Selector::reserve(const Hyperparameters& hp, int max_context) {
  heads_ = hp.heads;
  kv_heads_ = hp.kv_heads;
  max_context_ = max_context;
  pooled_ = allocate_memory(sizeof(float) * hp.heads * static_cast<size_t>(max_context), "attention scores");
  ranked_.resize(hp.heads);
}

void Selector::pool(const RowScores& scores, int first_head, int heads, int begin, int end, Pooling pooling,
                    float* pooled) {
  const int count = end - begin;
  if (pooling == Pooling::Max) {
    std::copy_n(scores.scores + first_head * scores.stride + begin, count, pooled + begin);
    for (int h = first_head + 1; h < first_head + heads; ++h) {
      pool_max(scores.scores + h * scores.stride + begin, count, pooled + begin);
    }
    return;
  }
  std::fill_n(pooled + begin, count, 0.0f);
  for (int h = first_head; h < first_head + heads; ++h) {
    const float* head = scores.scores + h * scores.stride;
    if (std::isfinite(scores.maximum[h]) && std::isfinite(scores.sum[h])) {
      pool_probabilities(head + begin, count, scores.maximum[h], scores.scale, 1.0f / scores.sum[h], pooled + begin);
    } else {
      pool_infinite(head, context_, begin, end, scores.scale, pooled + begin);
    }
  }
}

int Selector::keep_mass(const Policy& policy, const float* ranking, const float* mass, int32_t* positions, int unit) {
  const Reserved reserved = reserved_positions(policy);
  int32_t* const first = positions + reserved.sinks;
  int32_t* const last = positions + policy.budget - reserved.recent;
  double wanted = 0, held = 0;
  for (int i = 0; i < context_; ++i) wanted += mass[i];
  wanted *= policy.top_p;
  for (int i = 0; i < reserved.sinks; ++i) held += mass[i];
  for (int i = context_ - reserved.recent; i < context_; ++i) held += mass[i];

  std::vector<int32_t>& ranked = ranked_[unit];
  ranked.assign(first, last);
  std::sort(ranked.begin(), ranked.end(), [ranking](int32_t a, int32_t b) {
    const bool a_is_nan = std::isnan(ranking[a]), b_is_nan = std::isnan(ranking[b]);
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && ranking[a] != ranking[b]) return ranking[a] > ranking[b];
    return a < b;
  });
  size_t kept = 0;
  for (; kept < ranked.size() && held < wanted; ++kept) held += mass[ranked[kept]];
  std::sort(ranked.begin(), ranked.begin() + static_cast<ptrdiff_t>(kept));
  int32_t* end = std::copy_n(ranked.begin(), kept, first);
  end = std::copy(last, positions + policy.budget, end);
  return static_cast<int>(end - positions);
}

void Selector::take(const float* ranking, const Chunk& chunk, const Policy& policy, int unit,
                    const Selection& selection) {
  const Reserved reserved = reserved_positions(policy);
  const bool chooses = policy.budget > reserved.sinks + reserved.recent;
  int32_t* const positions = selection.unit(chunk, unit);
  take_positions(policy, ranking, context_, positions);
  selection.count(chunk, unit) =
      policy.top_p < 1 && chooses ? keep_mass(policy, ranking, pooled(unit), positions, unit) : policy.budget;
}

int Selector::ranges() const { return (context_ + kPoolPiece - 1) / kPoolPiece; }

std::pair<int, int> Selector::pool(const RowTerms& terms, int unit, int heads, int range) {
  const int begin = range * kPoolPiece, end = std::min(context_, begin + kPoolPiece), first_head = unit * heads;
  weighted_sum(terms.terms + first_head * terms.stride + begin, terms.stride, terms.factors + first_head, heads,
               end - begin, pooled(unit) + begin);
  return {begin, end};
}

void Selector::select(const RowScores& scores, const Chunk& chunk, const Policy& policy, const Selection& selection) {
  const Reserved reserved = reserved_positions(policy);
  const int context = context_ = chunk.context();
  const int units = scope_units(policy.scope, heads_, kv_heads_), heads = heads_ / units;
  const bool own_scores = !pools(policy.scope, heads_, kv_heads_);

  if ((!own_scores || policy.top_p < 1) && policy.budget > reserved.sinks + reserved.recent) {
    const Pooling pooling = own_scores ? Pooling::Sum : policy.pooling;
    const int ranges = this->ranges();
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int task = 0; task < ranges * units; ++task) {
      const int unit = task / ranges;
      const int begin = task % ranges * kPoolPiece;
      pool(scores, unit * heads, heads, begin, std::min(context, begin + kPoolPiece), pooling, pooled(unit));
    }
  }
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (units > 1)
  for (int unit = 0; unit < units; ++unit) {
    take(own_scores ? scores.scores + unit * scores.stride : pooled(unit), chunk, policy, unit, selection);
  }
}

void Selector::select(const RowTerms& terms, const Chunk& chunk, const Policy& policy, const Selection& selection) {
  begin(chunk);
  const int units = scope_units(policy.scope, heads_, kv_heads_), heads = heads_ / units, ranges = this->ranges();
#pragma omp parallel num_threads(threads_)
  {
    // Static: threads find the terms of the KV heads that they scored in their own cache.
#pragma omp for schedule(static)
    for (int task = 0; task < units * ranges; ++task) pool(terms, task / ranges, heads, task % ranges);
#pragma omp for schedule(static)
    for (int unit = 0; unit < units; ++unit) take(pooled(unit), chunk, policy, unit, selection);
  }
}

}  // namespace tidal
