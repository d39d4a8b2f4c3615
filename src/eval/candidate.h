// What calibration chooses among: plans of two kinds, each told by the few numbers that make it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/plan.h"

namespace tidal {

enum class PlanKind {
  Tidal,   ///< a few layers select by full attention
  Sketch,  ///< layers select for themselves by a sketch of their keys
};

const char* to_string(PlanKind kind);

/// The Select layers of a tidal plan, ascending. Layers before the first are Dense, all others Sparse. What follows the
/// first are the *further* ones.
using SelectLayers = std::vector<int>;

/// "2 + 9, 17": the first and the further ones.
std::string format_select(const SelectLayers& select);

struct Candidate {
  PlanKind kind = PlanKind::Tidal;
  SelectLayers select = {};  ///< of a tidal plan
  // Of a sketch plan:
  int bits = 0;                  ///< of its sketches
  int dense = 0;                 ///< first layers that are Dense
  std::vector<int> sparse = {};  ///< layers that reuse the selection before them, ascending; all others are Scan

  static Candidate tidal(SelectLayers select) { return {.select = std::move(select)}; }
  static Candidate sketch(int bits, int dense, std::vector<int> sparse = {}) {
    return {.kind = PlanKind::Sketch, .bits = bits, .dense = dense, .sparse = std::move(sparse)};
  }

  bool operator==(const Candidate&) const = default;
  /// Any order, for maps.
  bool operator<(const Candidate& other) const;
};

/// The policy of each kind of plan.
struct CandidatePolicies {
  Policy tidal;
  Policy sketch;  ///< the candidate says how many bits
};

/// Throws Error when the candidate's layers are not ascending inside a model of `layers`, or when nothing selects
/// before a Sparse one.
Plan plan_with(const Candidate& candidate, int layers, const CandidatePolicies& policies);
/// The same of a model's layers that read the whole context: a candidate counts among those.
Plan plan_with(const Candidate& candidate, const Hyperparameters& hp, const CandidatePolicies& policies);

/// "Select 2 + 9, 17"; "2-bit Scan, Dense 0, 1, Sparse 5, 9".
std::string format_candidate(const Candidate& candidate);
/// The same for a picture: "2 + 9, 17"; "2 bit, 2 Dense, 2 Sparse".
std::string short_name(const Candidate& candidate);

}  // namespace tidal
