// How a Select layer chooses positions: the rules of backend/policy.h, written for reading.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/policy.h"

namespace tidal::reference {

/// Raw scores q.k of one query head, one per position.
using Scores = std::vector<float>;

/// The share of each position: the softmax probabilities of the heads added up, which top-p counts.
std::vector<float> masses(std::span<const Scores> heads, double scale);
/// What the positions of one set are ranked by: the scores of its query heads pooled; a single head's raw scores.
/// `scale` is the factor on q.k before the softmax.
std::vector<float> pooled_scores(std::span<const Scores> heads, const Policy& policy, double scale);

/// The positions of one set, ascending: policy.budget of them, fewer with top_p. `heads`: the scores of its query
/// heads. The context, heads[0].size(), must be larger than the budget; the policy is one in numbers (Policy::at).
std::vector<int32_t> select_positions(std::span<const Scores> heads, const Policy& policy, double scale);

}  // namespace tidal::reference
