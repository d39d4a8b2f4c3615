#include "cli/options/generation_options.h"

#include <limits>

#include "core/error.h"

namespace tidal {

void add_sampling_options(CLI::App& app, SamplerOptions& sampler, int64_t& seed, const char* group) {
  const auto add = [&](const char* names, auto& value, const char* what, const char* variable) {
    app.add_option(names, value, what)->envname(variable)->capture_default_str()->group(group);
  };
  add("-s,--seed", seed, "Seed of the random numbers, -1 for another one every time", "TIDAL_SEED");
  add("--temp,--temperature", sampler.temperature, "Temperature, 0 for the most likely token always", "TIDAL_TEMP");
  add("--top-k", sampler.top_k, "Sample among the K most likely tokens, 0 for all", "TIDAL_TOP_K");
  add("--top-p", sampler.top_p, "Sample among the likeliest tokens with this probability together", "TIDAL_TOP_P");
  add("--min-p", sampler.min_p, "Leave out tokens less likely than this share of the likeliest", "TIDAL_MIN_P");
  add("--repeat-penalty", sampler.repeat_penalty, "Make repeated tokens less likely, 1 for off",
      "TIDAL_REPEAT_PENALTY");
  add("--repeat-last-n", sampler.repeat_last_n, "Tokens that this looks back, 0 for off, -1 for the context",
      "TIDAL_REPEAT_LAST_N");
}

void check_sampling(const SamplerOptions& sampler, int64_t seed) {
  if (sampler.repeat_last_n < -1) fail("--repeat-last-n: {} given, expected -1 or more", sampler.repeat_last_n);
  if (seed < -1 || seed > std::numeric_limits<uint32_t>::max()) {
    fail("--seed: {} given, expected -1 to {}", seed, std::numeric_limits<uint32_t>::max());
  }
}

SamplerOptions with_context(SamplerOptions sampler, int64_t seed, int context) {
  sampler.seed = static_cast<uint32_t>(seed);  // -1 is libllama's "random"
  if (sampler.repeat_last_n < 0) sampler.repeat_last_n = context;
  return sampler;
}

void add_exact_option(CLI::App& app, ExactOption& exact) {
  exact.option =
      app.add_option(
             "--exact", exact.drafts,
             fmt::format("Full attention's text at up to sparse attention's speed: draft up to T tokens sparsely, keep "
                         "those that full attention confirms (default T: {})",
                         kDefaultDrafts))
          ->type_name("T")
          ->expected(0, 1)
          ->default_str(std::to_string(kDefaultDrafts))
          ->envname("TIDAL_EXACT")
          ->group("Sparse attention");
}

void check_exact(const ExactOption& exact, const PlanOptions& plan) {
  if (!exact.given()) return;
  if (exact.drafts < 1) fail("--exact: {} drafts given, at least 1 is needed", exact.drafts);
  if (plan.attention == "full") fail("--exact: drafts are sparse attention's, so --attention full leaves none");
  if (plan.correct) fail("--correct: every round of --exact corrects the cache, give only one of the two");
}

}  // namespace tidal
