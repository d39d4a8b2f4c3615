#include "backend/cpu/selector.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/memory.h"
#include "backend/cpu/top_k.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

constexpr int kPoolPiece = 2048;  // positions that one thread pools at a time

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

void Selector::reserve(const Hyperparameters& hp, int max_context) {
  heads_ = hp.heads;
  max_context_ = max_context;
  pooled_ = allocate_memory(sizeof(float) * hp.kv_heads * static_cast<size_t>(max_context), "attention scores");
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

void Selector::select(const RowScores& scores, int context, int row, const Selection& selection) {
  const Policy& policy = selection.policy;
  const Reserved reserved = reserved_positions(policy);
  context_ = context;
  const int heads = heads_ / selection.units;
  const int chosen = policy.budget - reserved.sinks - reserved.recent;
  const bool pooling = policy.scope != Scope::Head;

  if (pooling && chosen > 0) {
    const int ranges = (context + kPoolPiece - 1) / kPoolPiece;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int task = 0; task < ranges * selection.units; ++task) {
      const int unit = task / ranges;
      const int begin = task % ranges * kPoolPiece;
      pool(scores, unit * heads, heads, begin, std::min(context, begin + kPoolPiece), policy.pooling,
           pooled_.as<float>() + static_cast<int64_t>(unit) * max_context_);
    }
  }
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (selection.units > 1)
  for (int unit = 0; unit < selection.units; ++unit) {
    const float* ranking = pooling ? pooled_.as<float>() + static_cast<int64_t>(unit) * max_context_
                                   : scores.scores + unit * scores.stride;
    int32_t* positions = selection.unit(row, unit);
    for (int i = 0; i < reserved.sinks; ++i) *positions++ = i;
    top_k(ranking, reserved.sinks, context - reserved.sinks - reserved.recent, chosen, positions);
    positions += chosen;
    for (int i = context - reserved.recent; i < context; ++i) *positions++ = i;
  }
}

}  // namespace tidal
