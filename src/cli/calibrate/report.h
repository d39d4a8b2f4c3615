// What `tidal calibrate` shows: the plans and the frontier, the sweeps over single layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/calibration_choice.h"
#include "eval/loss_table.h"

namespace tidal {

/// A plan that was measured on all texts.
struct CalibratedPlan {
  FoundPlan found;
  TextLoss all, text, retrieval;  ///< of the choice; `all` is both together
  TextLoss held_out;              ///< no tokens where it was not measured
  double seconds = 0;             ///< expected of a decode step
  bool frontier = false;          ///< no other plan has at most its bytes and at most its KL
};

struct CalibrationReport {
  std::string model, text;  ///< names of the files
  int context = 0;          ///< positions at which bytes and seconds are meant
  int64_t full_bytes = 0;
  double full_seconds = 0;
  std::vector<CalibratedPlan> plans;  ///< finalists of the searches, tidal plans first
  size_t chosen = 0;                  ///< index into plans; plans.size() for none
  std::vector<RankedPlan> sweep;      ///< every single further Select layer, over the texts that all of them saw
  std::vector<RankedPlan> reuse;      ///< every single layer that reuses the selection before it instead of scanning
  RankedPlan reuse_base;              ///< the same plan with none, over the same texts
};

/// Marks the plans on the frontier.
void mark_frontier(std::vector<CalibratedPlan>& plans);
/// The plans worth a line: the best for every number of further Select layers, all that scan, the frontier and the
/// chosen one, by rising bytes.
std::vector<size_t> shown_plans(const CalibrationReport& report);

std::string table(const CalibrationReport& report);
std::string frontier_svg(const CalibrationReport& report);
std::string sweep_svg(const CalibrationReport& report);

/// What each layer loses that reuses a selection, from the least on.
std::string reuse_table(const CalibrationReport& report);
std::string reuse_svg(const CalibrationReport& report);

}  // namespace tidal
