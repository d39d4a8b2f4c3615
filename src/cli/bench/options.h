// The flags of `tidal bench` and `tidal compare` that are lists or words.
#pragma once

#include <ggml.h>

#include <optional>
#include <string>
#include <vector>

#include "cli/bench/run.h"
#include "cli/options/plan_options.h"

namespace tidal {

/// Whole numbers from `least` on, separated by commas; ascending and each once in the result. Throws Error naming
/// `flag` and the part that is wrong.
std::vector<int> number_list(const std::string& flag, const std::string& text, int least);
/// Words separated by commas, in the order given and each once. Throws Error naming `flag` for one that is not among
/// `known`.
std::vector<std::string> word_list(const std::string& flag, const std::string& text,
                                   const std::vector<std::string>& known);
/// What --attention of these commands takes, for --help.
extern const char* const kBenchAttentionHelp;
/// The plans of a list of kinds of attention: full, tidal, sketch, default (what choose_plan() takes), exact,
/// exact-tidal, exact-sketch; no list: full, the kind that choose_plan() takes, and default where that is full
/// attention below some length. Throws Error for another word.
std::vector<BenchPlan> bench_plans(const std::optional<std::string>& words, const PlanOptions& options,
                                   const Hyperparameters& hp, const FullBelow& full_below = {});
/// Throws Error unless `word` is empty or names an engine that can be the baseline.
void check_baseline(const std::string& word);
/// A type of weights by ggml's name (q4_0, q4_K, ..., case does not matter). Throws Error for any other.
ggml_type weight_type_from(const std::string& word);

}  // namespace tidal
