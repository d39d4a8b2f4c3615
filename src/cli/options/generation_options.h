// The flags that say how tokens of an answer are chosen, the same for every command that answers.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

#include "cli/options/plan_options.h"
#include "engine/exact.h"
#include "text/sampler.h"

namespace tidal {

/// --seed, --temp, --top-k, --top-p, --min-p, --repeat-penalty, --repeat-last-n and their TIDAL_* variables. Both
/// references must outlive the parsing.
void add_sampling_options(CLI::App& app, SamplerOptions& sampler, int64_t& seed, const char* group);
/// Throws Error unless `seed` is -1 to 2^32 - 1 and --repeat-last-n at least -1.
void check_sampling(const SamplerOptions& sampler, int64_t seed);
/// With the seed in it, and with the context in place of a --repeat-last-n of -1.
SamplerOptions with_context(SamplerOptions sampler, int64_t seed, int context);

/// --exact [T]
struct ExactOption {
  const CLI::Option* option = nullptr;
  int drafts = kDefaultDrafts;  ///< most drafts of a round, where the option is given

  bool given() const { return option->count() > 0; }
};

/// Adds it and TIDAL_EXACT. `exact` must outlive the parsing.
void add_exact_option(CLI::App& app, ExactOption& exact);
/// Throws Error for no drafts and for flags of the plan that contradict it.
void check_exact(const ExactOption& exact, const PlanOptions& plan);

}  // namespace tidal
