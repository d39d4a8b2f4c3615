// The reference backend's experts.
#pragma once

#include <vector>

#include "backend/reference/math.h"

namespace tidal::reference {

struct ChosenExpert {
  int expert;
  float weight;
};
/// The experts that a row of router logits [experts.count] sends it through, the most probable first, of equals the one
/// that comes first; NaN is below everything.
std::vector<ChosenExpert> choose_experts(const float* logits, const Experts& experts);

/// to += what the shared expert makes of `normed`, by its switch where it has one.
void add_shared_expert(const Hyperparameters& hp, const Layer& layer, Rows normed, Rows to);
/// to += what the experts that these router logits [rows, experts] choose make of `normed`.
void add_chosen_experts(const Hyperparameters& hp, const Layer& layer, Rows logits, Rows normed, Rows to);

}  // namespace tidal::reference
