// The search for the Select layers of tidal plans: a sweep over single ones, then a beam of growing sets, all by
// successive halving.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "eval/loss_table.h"

namespace tidal {

struct SearchOptions {
  int layers = 0;                             ///< of the model
  std::vector<int> first_select = {1, 2, 3};  ///< layers that may be the first Select
  int selects = 4;                            ///< most further Select layers
  std::vector<int> rungs;  ///< rising; rung r of halving measures on texts [0, rungs[r]), the last on all
  int finalists = 5;       ///< plans that reach the last rung
  int beam = 2;            ///< sets that another layer is added to
  int refinements = 2;     ///< most rounds of moving and removing single layers, per number of layers
  /// Asked with the best plan of every number of further layers: true where no more layers need to be tried.
  std::function<bool(const RankedPlan& best)> enough = {};
};

/// Successive halving: all plans on the first rung's texts, the best third of them on the second's, and so on; the best
/// `finalists` on the last. The best of every first Select layer goes on in any case. Since all plans of a rung see the
/// same texts, what is common to them cancels. Returns the finalists, best first; ties go to fewer, then to lower
/// layers, and NaN is worst.
std::vector<RankedPlan> halve(LossTable& table, std::vector<SelectLayers> plans, std::span<const int> rungs,
                              size_t finalists);

/// The sets to try next to one: every further layer moved by up to two, the first by one, and one further layer less.
std::vector<SelectLayers> neighbours(const SelectLayers& select, const SearchOptions& options);

/// Plans with n + 1 further Select layers, best first, at index n. One further layer: all layers. More: to each of the
/// best sets every layer is added, and the best result is refined by its neighbours. No layer needs to be known to be
/// good: the table decides alone, and the same table gives the same plans. Empty where the model has no more layers.
/// Throws Error for options that leave nothing to try.
std::vector<std::vector<RankedPlan>> search_plans(LossTable& table, const SearchOptions& options);

}  // namespace tidal
