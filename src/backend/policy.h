// What a layer does at a decode step, and how a Select layer chooses positions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tidal {

/// What a layer does at a decode step (TidalDecode, section 3). Prefill is dense in every layer.
enum class Role : uint8_t {
  Dense,   ///< full attention
  Select,  ///< full attention that also selects positions
  Sparse,  ///< attention over the last selected positions
  Scan,    ///< selects by a sketch of its own keys (backend/sketch.h), then attends to the selected positions
};

/// Whether a layer of this role chooses positions, for itself or for those after it.
inline constexpr bool selects(Role role) { return role == Role::Select || role == Role::Scan; }
/// Whether it attends to selected positions only.
inline constexpr bool reads_selected(Role role) { return role == Role::Sparse || role == Role::Scan; }

/// Who shares one set of selected positions.
enum class Scope {
  Head,    ///< one set per query head (the paper)
  Kv,      ///< one set per KV head; its group of query heads is pooled
  Shared,  ///< one set per layer; all query heads are pooled
};

/// How the scores of several query heads become one.
enum class Pooling {
  Max,  ///< maximum of the raw scores q.k
  Sum,  ///< sum of the softmax probabilities
};

/// What a Scan layer makes of the positions that it does not select: nothing, or an estimate of what they would add.
/// Then it goes through them in three tiers, each the best by sketch of the one around it: those ranked again by their
/// keys, of which the selection is made; those whose values are estimated one by one; all others, of which the means of
/// their blocks' values stand (backend/value_sketch.h).
struct Completion {
  int ranked = 0;     ///< budgets of positions that are ranked again; 0: nothing is estimated
  int estimated = 0;  ///< budgets of positions whose values are estimated, >= ranked

  explicit operator bool() const { return ranked > 0; }
  bool operator==(const Completion&) const = default;
};
inline constexpr int kMostBudgets = 64;  ///< of a Completion
/// By what the softmax weights of positions are multiplied whose values are means: scores from sketches are about as
/// often too high as too low, their exponentials on average too high, and a mean stands for them (docs/completion.md).
inline constexpr float kShareOfMeans = 0.25f;

/// The selection policy. The token being decoded always counts as selected, so `recent` acts as at least 1.
struct Policy {
  Scope scope = Scope::Shared;
  Pooling pooling = Pooling::Sum;
  int budget = 256;  ///< most positions selected per set, sinks and recent included; >= 1
  int sinks = 4;     ///< first positions of the sequence that are always selected
  int recent = 64;   ///< last positions of the sequence that are always selected
  /// Above 0: the budget is this share of the context, and at least `budget`.
  double budget_share = 0;
  /// Above 0: this share of the budget, instead of `recent` positions.
  double recent_share = 0;
  /// Below 1: no more positions than hold this share of the attention mass, and never more than the budget. The mass
  /// is what Pooling::Sum adds up; Pooling::Max has none, so there it takes Scope::Head.
  double top_p = 1;
  /// Bits of a key's element in the sketch that Scan layers read: 1, 2 or 4.
  int sketch_bits = 2;
  /// With scope kv, pooling sum and a top-p of 1 alone. A set of one head may be ranked by its terms then: scores that
  /// float32 makes the same term of are equal.
  Completion completion = {};

  /// The same policy in numbers for a context: budget_share and recent_share are 0. This is what backends get.
  Policy at(int context) const {
    Policy policy = *this;
    if (budget_share > 0) policy.budget = std::max(budget, static_cast<int>(budget_share * context));
    if (recent_share > 0) policy.recent = static_cast<int>(recent_share * policy.budget);
    policy.budget_share = policy.recent_share = 0;
    return policy;
  }

  bool operator==(const Policy&) const = default;
};

/// Positions of a set that are selected whatever their scores.
struct Reserved {
  int sinks = 0;   ///< the first ones
  int recent = 0;  ///< the last ones, at least the token being decoded
};

/// How the budget of a policy is divided: recent first, then sinks, as far as they fit. What is left goes to the
/// highest pooled scores of all other positions; ties to the lower position, NaN below everything (even -infinity), -0
/// as +0. Pooling Max takes the highest raw q.k of the pooled
/// heads, ignoring NaN unless all are NaN. Pooling Sum adds, in the order of the heads, softmax probabilities over the
/// whole context, where a NaN score counts as -infinity, positions at +infinity share their head's whole mass evenly,
/// and a head without any score above -infinity adds nothing. A set of one head (Scope::Head; Scope::Kv where every
/// query head has its own KV head) pools nothing and ranks raw q.k.
///
/// With top_p below 1 fewer are taken: the reserved positions, then by rank until those taken hold at least top_p of
/// the sum of all probabilities (of this set's heads).
inline Reserved reserved_positions(const Policy& policy) {
  Reserved reserved;
  reserved.recent = std::min(std::max(policy.recent, 1), policy.budget);
  reserved.sinks = std::min(policy.sinks, policy.budget - reserved.recent);
  return reserved;
}

/// Sets of positions per row for a model with these head counts.
inline int scope_units(Scope scope, int heads, int kv_heads) {
  return scope == Scope::Head ? heads : scope == Scope::Kv ? kv_heads : 1;
}
/// Whether a set has several heads, whose scores are pooled.
inline bool pools(Scope scope, int heads, int kv_heads) { return scope_units(scope, heads, kv_heads) < heads; }
/// Whether what is selected hangs on softmax probabilities. Then scores that a model caps count as it caps them, else
/// q.k do as they are: a cap leaves their order.
inline bool weighs(const Policy& policy, int heads, int kv_heads) {
  return policy.top_p < 1 || (policy.pooling == Pooling::Sum && pools(policy.scope, heads, kv_heads));
}

}  // namespace tidal
