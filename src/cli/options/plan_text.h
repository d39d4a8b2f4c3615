// Plans in words.
#pragma once

#include <string>

#include "model/plan.h"

namespace tidal {

/// The plan in one line: kind of attention, roles of the layers, where those come from (`source`), and the policy.
/// `hp`: of its model, whose layers that do not read the whole context stand in no list of layers; without it there are
/// none.
std::string describe(const Plan& plan, const std::string& source, const Hyperparameters& hp = {});
/// "15 of 18 layers with a window of 512", "30 of 40 layers recurrent": the layers that do not read the whole context;
/// "" where all do.
std::string other_layers_text(const Hyperparameters& hp);
/// The budget of a policy as the flag writes it: "256", "5%,128", with top-p "256 at top-p 0.95".
std::string budget_text(const Policy& policy);
/// The width of a policy's sketches: "1 bit", "2 bits".
std::string bits_text(const Policy& policy);

/// What tells a plan from every other one of a model, in few words: "full"; "K=256, select 2+9" and "K=256, sketch 2
/// bits" for the default policies, where all other layers are Dense before the first Select and else Sparse, or Scan;
/// otherwise with further roles ("dense 0-1", "select 2", "sparse 3+5") and with "paper" or what differs from the
/// default policy behind it.
std::string plan_name(const Plan& plan, const Hyperparameters& hp = {});

}  // namespace tidal
