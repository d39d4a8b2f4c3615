// One text, one token a step, by several plans side by side.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace tidal {

/// What a plan made of one step. The logits are valid during the call only.
struct ForcedStep {
  int plan = 0;                   ///< index into the plans
  int step = 0;                   ///< index of the token that was fed
  std::span<const float> logits;  ///< [vocab] after that token, by the plan
  std::span<const float> full;    ///< [vocab] the same by full attention
};

/// Positions that the pool needs beside those of the prefix so that `plans` plans (full attention not counted) decode
/// `steps` tokens at once: what to add to EngineOptions::tokens. With less, they take turns.
int64_t teacher_forced_tokens(int plans, int steps);

/// Feeds `tokens` one a step behind `prefix`, which stays as it is, once by full attention and once by every plan, each
/// on a fork of its own. A step is decoded in batches of up to engine.options().sequences; what a plan gets is
/// bit-identical to decoding it alone. Plans whose forks find no room in the pool together take turns, full attention
/// then running in every turn again. For every plan `use` is called step by step in order; returning false ends the
/// run. Returns whether it went through. Throws Error when a plan does not fit the model, when the tokens do not fit in
/// the context, and when the pool has no room for one plan beside full attention.
bool teacher_forced(Engine& engine, const Sequence& prefix, std::span<const Token> tokens, std::span<const Plan> plans,
                    const std::function<bool(const ForcedStep&)>& use);

}  // namespace tidal
