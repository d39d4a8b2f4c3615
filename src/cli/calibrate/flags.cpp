#include "cli/calibrate/flags.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace tidal {

bool CalibrateFlags::wants(PlanKind kind) const {
  return std::find(kinds.begin(), kinds.end(), to_string(kind)) != kinds.end();
}

void add_calibrate_flags(CLI::App& command, CalibrateFlags& flags) {
  command.add_option("-m,--model", flags.model, "GGUF model file")->envname("TIDAL_MODEL")->required();
  command.add_option("-f,--file", flags.text, "A long text like those you will use (default: kjv.txt)");
  command
      .add_option("--kinds", flags.kinds,
                  "Kinds of plans to look for: tidal (a few layers select), sketch (layers scan)")
      ->delimiter(',')
      ->type_name("KIND,KIND")
      ->capture_default_str();
  command.add_option("--selects", flags.wanted.selects,
                     "Tidal plans with at most N Select layers beyond the first, the best of them (default: as many as "
                     "improve the KL by a tenth each, at most 4; no more are tried where a sketch plan is far better)");
  command.add_option("--target-kl", flags.wanted.target_kl,
                     "Take the cheapest plan of at most this KL divergence, of all kinds");
  command.add_option("-o,--output", flags.output, "The plan (default: MODEL.tidal.json, which tidal run finds)");
  command.add_option("-t,--threads", flags.threads, "Threads (default: all processors)")->envname("TIDAL_THREADS");
  add_backend_options(command, flags.backend);
  add_kv_options(command, flags.kv);
  const char* group = "Measurement";
  CalibrationShape& shape = flags.shape;
  command.add_option("--prefix", shape.prefix, "Tokens before the first step (default: 4096, or half of a short text)")
      ->group(group);
  command.add_option("--steps", shape.steps, "Tokens decoded at each place")->capture_default_str()->group(group);
  command.add_option("--stretches", shape.stretches, "How often at each place; after the first for finalists only")
      ->capture_default_str()
      ->group(group);
  command.add_option("--places", shape.places, "Places in the text to choose by")->capture_default_str()->group(group);
  command.add_option("--prompts", shape.prompts, "Retrieval prompts to choose by")->capture_default_str()->group(group);
  command.add_option("--held-out", shape.held_out, "Further places, only to report on")
      ->capture_default_str()
      ->group(group);
  command.add_option("--batch", flags.batch, "Plans decoded together; changes the time, not the result")
      ->capture_default_str()
      ->group(group);
  command.add_flag("--exhaustive", flags.exhaustive, "Measure every plan on all texts")->group(group);
  add_plan_options(command, flags.plan);
}

void check(const CalibrateFlags& flags) {
  if (flags.wanted.selects && flags.wanted.target_kl) fail("--selects and --target-kl: give only one of the two");
  if (flags.wanted.selects && *flags.wanted.selects < 1) {
    fail("--selects: {} given, at least 1 is needed", *flags.wanted.selects);
  }
  if (flags.wanted.target_kl && !(std::isfinite(*flags.wanted.target_kl) && *flags.wanted.target_kl > 0)) {
    fail("--target-kl: {:g} given, expected a number above 0", *flags.wanted.target_kl);
  }
  if (flags.kinds.empty()) fail("--kinds: none given, expected tidal, sketch or both");
  for (const std::string& word : flags.kinds) {
    if (word != to_string(PlanKind::Tidal) && word != to_string(PlanKind::Sketch)) {
      fail("--kinds: '{}' is not known, expected tidal, sketch or both", word);
    }
  }
  if (flags.wanted.selects && !flags.wants(PlanKind::Tidal))
    fail("--selects: only tidal plans select, --kinds has none");
  const char* const of_sketch = flags.plan.sketch         ? "--sketch"
                                : flags.plan.dense_layers ? "--dense-layers"
                                : flags.plan.complete     ? "--complete"
                                                          : nullptr;
  if (of_sketch && !flags.wants(PlanKind::Sketch)) fail("{}: only sketch plans scan, --kinds has none", of_sketch);
  if (flags.batch < 1 || flags.batch > 256) fail("--batch: {} given, expected 1 to 256", flags.batch);
  const char* looked_for = "calibrate looks for the layers itself";
  if (flags.plan.reselect) fail("--reselect: {}", looked_for);
  if (!flags.plan.file.empty() && flags.plan.file != "none") fail("--plan: {}", looked_for);
  if (flags.plan.correct && *flags.plan.correct != 0) fail("--correct: calibrate measures plans without corrections");
}

CandidatePolicies candidate_policies(const CalibrateFlags& flags, const Hyperparameters& hp) {
  PlanOptions tidal = flags.plan;
  tidal.file.clear();
  PlanOptions sketch = tidal;
  tidal.attention = to_string(PlanKind::Tidal);
  drop_sketch_flags(tidal);
  sketch.attention = to_string(PlanKind::Sketch);
  if (sketch.policy == "paper") sketch.policy = {};
  const Policy scan = make_plan(sketch, hp).policy;
  return {has_tidal_plans(hp) ? make_plan(tidal, hp).policy : scan, scan};
}

}  // namespace tidal
