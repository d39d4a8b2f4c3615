// What calibration knows: the losses of candidates on texts.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "eval/candidate.h"

namespace tidal {

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

/// What is known of candidates on texts. Nothing is measured twice.
class LossTable {
 public:
  /// Measures candidates on one text: a loss for each, in their order.
  using Measure = std::function<std::vector<TextLoss>(std::span<const Candidate> plans, int text)>;

  explicit LossTable(Measure measure) : measure_(std::move(measure)) {}

  /// Known from elsewhere.
  void add(const Candidate& plan, int text, const TextLoss& loss) { known_[{plan, text}] = loss; }
  /// Measures what is not known of these candidates on texts [first, end), all of them on one text together.
  void require(std::span<const Candidate> plans, int first, int end);
  /// Over texts [first, end), which must be known.
  TextLoss over(const Candidate& plan, int first, int end) const;
  bool known(const Candidate& plan, int text) const { return known_.contains({plan, text}); }

 private:
  Measure measure_;
  std::map<std::pair<Candidate, int>, TextLoss> known_;
};

/// A candidate with what it lost on some texts.
struct RankedPlan {
  Candidate plan;
  TextLoss loss;
};

/// What losses are sorted by: NaN and infinity alike are the worst.
double rank(double loss);

/// What a loss must improve by to be worth a plan that costs more: a tenth.
inline constexpr double kWorthwhile = 0.1;

/// Index of the first of these losses, in the order of rising costs, that the lowest one does not improve on by a
/// tenth: the cheapest plan that is good enough. NaN and infinity are worst. 0 for none.
size_t cheapest_good(std::span<const double> losses);

}  // namespace tidal
