// The flags of `tidal calibrate`.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/options/backend_options.h"
#include "cli/options/kv_options.h"
#include "cli/options/plan_options.h"
#include "eval/calibration_choice.h"
#include "eval/calibration_texts.h"
#include "eval/candidate.h"

namespace tidal {

struct CalibrateFlags {
  std::string model, text, output;
  std::vector<std::string> kinds = {to_string(PlanKind::Tidal), to_string(PlanKind::Sketch)};
  Wanted wanted;
  CalibrationShape shape;
  std::optional<int> threads;
  BackendOptions backend;
  KvOptions kv;
  int batch = 15;
  bool exhaustive = false;
  PlanOptions plan;

  /// Whether plans of this kind are looked for.
  bool wants(PlanKind kind) const;
};

/// --sketch and --dense-layers leave the search no choice of these. `flags` must outlive the parsing.
void add_calibrate_flags(CLI::App& command, CalibrateFlags& flags);
/// Throws Error for values out of range and for flags that contradict each other.
void check(const CalibrateFlags& flags);
/// The policies of the flags. Plans that scan have one selection per KV head, unless --scope or --policy says
/// otherwise.
CandidatePolicies candidate_policies(const CalibrateFlags& flags, const Hyperparameters& hp);

}  // namespace tidal
