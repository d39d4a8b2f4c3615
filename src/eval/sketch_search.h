// The search among plans that scan: how many first layers stay Dense, how many bits a sketch has, which layers may do
// with the selection of the one before them.
#pragma once

#include <vector>

#include "eval/loss_table.h"

namespace tidal {

struct SketchSearchOptions {
  int layers = 0;                      ///< of the model
  std::vector<int> dense = {0, 1, 2};  ///< counts of first Dense layers to try, rising
  std::vector<int> bits = {1, 2, 4};   ///< widths to try, rising
  int first_bits = 2;                  ///< width that the Dense layers are counted with
  int texts = 0;                       ///< to choose by, >= 1
  int sweep_texts = 0;                 ///< the first of them, which the sweep over single layers sees; >= 1
};

struct SketchPlans {
  std::vector<RankedPlan> plans;  ///< measured on all texts, in the order in which they were tried
  Candidate best;                 ///< with all layers behind the Dense ones scanning: what the sweep starts from
  TextLoss best_loss;             ///< over the sweep's texts
  std::vector<RankedPlan> sweep;  ///< `best` with one layer Sparse, for every layer that can be, over the same texts
};

/// The fewest Dense layers that are good enough (cheapest_good()), then with them the fewest bits. From that plan every
/// single layer behind the first one that scans is turned to Sparse, and then the 1, 2, 4, 8 ... layers that lost least
/// alone are together; ties go to lower layers, and a layer of a loss that is no number stays as it is. The table
/// decides alone: the same table gives the same plans. Throws Error for options that leave nothing to try.
SketchPlans search_sketch_plans(LossTable& table, const SketchSearchOptions& options);

}  // namespace tidal
