// How a Select layer chooses positions.
#pragma once

namespace tidal {

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

/// The selection policy. The token being decoded always counts as selected, so `recent` acts as at least 1.
struct Policy {
  Scope scope = Scope::Shared;
  Pooling pooling = Pooling::Sum;
  int budget = 256;  ///< positions selected per set, sinks and recent included; >= 1
  int sinks = 4;     ///< first positions of the sequence that are always selected
  int recent = 64;   ///< last positions of the sequence that are always selected

  bool operator==(const Policy&) const = default;
};

/// Sets of positions per row for a model with these head counts.
inline int scope_units(Scope scope, int heads, int kv_heads) {
  return scope == Scope::Head ? heads : scope == Scope::Kv ? kv_heads : 1;
}

}  // namespace tidal
