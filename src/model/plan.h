// A plan: the role of every layer at a decode step, and the selection policy.
#pragma once

#include <string>
#include <vector>

#include "backend/hyperparameters.h"
#include "backend/policy.h"

namespace tidal {

struct Plan {
  /// One per layer. A layer that does not read the whole context is Dense, which there means: as it always reads.
  std::vector<Role> roles;
  Policy policy;
  /// Cache correction (TidalDecode, section on KV cache correction): after this many sparsely decoded tokens their K/V
  /// are computed again by dense attention; 0: never.
  int correct = 0;
  /// A decode step at a context of fewer positions is full attention in every layer, as within the budget; 0: off. For
  /// devices where full attention is the faster one up to some length (Backend::full_below()).
  int full_below = 0;

  /// Full attention in every layer.
  static Plan full(int layers);
  /// The paper's: Dense 0 and 1, Select 2 and `reselect`, Sparse elsewhere. Throws Error unless 2 < reselect < layers.
  static Plan tidal(int layers, int reselect, const Policy& policy);
  /// The same of the layers that read the whole context; `reselect` is such a one behind the third of them.
  static Plan tidal(const Hyperparameters& hp, int reselect, const Policy& policy);

  /// The project's own: `dense` layers Dense, then Scan. Throws Error unless 0 <= dense < layers.
  static Plan sketch(int layers, int dense, const Policy& policy);
  /// The same of the layers that read the whole context.
  static Plan sketch(const Hyperparameters& hp, int dense, const Policy& policy);

  /// This plan of the layers that read the whole context as one of all layers.
  Plan among(const Hyperparameters& hp) const;

  /// Whether a layer reads only selected positions: one that is Sparse or Scan.
  bool has_sparse() const;
  /// Whether it may go on only with K/V that dense attention computed: full attention, and plans that correct.
  bool needs_clean() const { return !has_sparse() || correct > 0; }
  /// Whether a layer selects by a sketch of its keys.
  bool scans() const { return count(Role::Scan) > 0; }
  /// Whether such a layer estimates what it does not select.
  bool completes() const { return scans() && policy.completion; }
  /// Whether a decode step with so many positions, its own included, is sparse: not while they fit in the budget, and
  /// not below `full_below`.
  bool sparse_at(int context) const {
    return has_sparse() && context >= full_below && context > policy.at(context).budget;
  }
  int count(Role role) const;
  std::vector<int> layers(Role role) const;
  /// Throws Error when the plan cannot run on this model: wrong number of layers, a role for a layer that does not read
  /// the whole context, Sparse before any Select or Scan, a budget below 1, sinks and recent that do not fit in the
  /// budget, shares that are none.
  void check(const Hyperparameters& hp) const;

  bool operator==(const Plan&) const = default;
};

/// The project's default policy for a budget: shared, sum, 4 sinks and a quarter of the budget recent.
Policy default_policy(int budget);
/// The default policy where layers scan: kv, sum, nothing reserved. Every layer scores its own keys, so sinks are
/// selected where they matter, and the block still filling is read anyway (docs/accuracy.md).
Policy sketch_policy(int budget);
/// The paper's policy: one set per query head by raw score, no sinks, no recent.
Policy paper_policy(int budget);

/// Whether enough layers read the whole context for Plan::tidal().
bool has_tidal_plans(const Hyperparameters& hp);
/// The middle Select layer: from the table of measured models, else by the rule in plan.cpp.
int default_reselect(const Hyperparameters& hp);
/// Layers that read the selection of the Scan layer before them at hardly any loss, measured for this very shape
/// (docs/accuracy.md): where all others scan, these may be Sparse. Empty where it is not known.
std::vector<int> default_reuse(const Hyperparameters& hp);
/// How many of the layers that read the whole context, the first ones, had better stay Dense where all others scan,
/// measured for this very shape. 0 where it is not known.
int default_dense(const Hyperparameters& hp);
/// True when default_reselect() comes from a measurement of this very shape.
bool reselect_is_measured(const Hyperparameters& hp);

/// The JSON form; see docs/plans.md. `about`: a sentence for people on where the plan comes from.
std::string to_json(const Plan& plan, const Hyperparameters& hp, const std::string& about = "");
/// Throws Error `name: ...` for malformed JSON, unknown fields, roles or scopes, or a plan made for another model
/// (architecture, layers, width, heads).
Plan plan_from_json(const std::string& text, const std::string& name, const Hyperparameters& hp);
Plan load_plan(const std::string& path, const Hyperparameters& hp);
void save_plan(const std::string& path, const Plan& plan, const Hyperparameters& hp, const std::string& about = "");

const char* to_string(Role role);
const char* to_string(Scope scope);
const char* to_string(Pooling pooling);
/// Throw Error listing the known words for any other.
Scope scope_from(const std::string& word);
Pooling pooling_from(const std::string& word);

}  // namespace tidal
