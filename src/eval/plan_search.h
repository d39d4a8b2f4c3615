// The search for Select layers: a sweep over single ones, then a beam of growing sets, all by successive halving.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/plan.h"

namespace tidal {

/// The Select layers of a plan, ascending. Layers before the first are Dense, all others Sparse. What follows the first
/// are the *further* ones.
using SelectLayers = std::vector<int>;

/// Throws Error when the layers are not ascending inside a model of `layers`.
Plan plan_with(const SelectLayers& select, int layers, const Policy& policy);
/// "2 + 9, 17": the first and the further ones.
std::string format_select(const SelectLayers& select);

/// What a plan loses at the tokens of one text: enough for a mean and its standard error.
struct TextLoss {
  int64_t tokens = 0;
  double sum = 0;
  double squares = 0;  ///< sum of the squared losses

  void add(double loss) {
    ++tokens;
    sum += loss;
    squares += loss * loss;
  }
  void add(const TextLoss& other);
  double mean() const;
  /// Standard error of the mean, tokens taken as independent; 0 for fewer than two.
  double error() const;
};

/// What is known of plans on texts. Nothing is measured twice.
class LossTable {
 public:
  /// Measures plans on one text: a loss for each, in their order.
  using Measure = std::function<std::vector<TextLoss>(std::span<const SelectLayers> plans, int text)>;

  explicit LossTable(Measure measure) : measure_(std::move(measure)) {}

  /// Known from elsewhere.
  void add(const SelectLayers& select, int text, const TextLoss& loss) { known_[{select, text}] = loss; }
  /// Measures what is not known of these plans on texts [first, end), all plans on one text together.
  void require(std::span<const SelectLayers> plans, int first, int end);
  /// Over texts [first, end), which must be known.
  TextLoss over(const SelectLayers& select, int first, int end) const;
  bool known(const SelectLayers& select, int text) const { return known_.contains({select, text}); }

 private:
  Measure measure_;
  std::map<std::pair<SelectLayers, int>, TextLoss> known_;
};

struct SearchOptions {
  int layers = 0;                             ///< of the model
  std::vector<int> first_select = {1, 2, 3};  ///< layers that may be the first Select
  int selects = 4;                            ///< most further Select layers
  std::vector<int> rungs;  ///< rising; rung r of halving measures on texts [0, rungs[r]), the last on all
  int finalists = 5;       ///< plans that reach the last rung
  int beam = 2;            ///< sets that another layer is added to
  int refinements = 2;     ///< most rounds of moving and removing single layers, per number of layers
};

/// A plan that was measured on all texts.
struct RankedPlan {
  SelectLayers select;
  TextLoss loss;
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
