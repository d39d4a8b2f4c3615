// The result file of `tidal calibrate`: every measurement a row, so that none is made twice.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "eval/calibration_texts.h"
#include "eval/loss_table.h"
#include "model/model.h"
#include "model/plan.h"
#include "report/result_file.h"

namespace tidal {

class CalibrationRows {
 public:
  /// Opens or creates the file. Its header holds everything that a measurement depends on; which plan is asked for in
  /// the end is not part of that. Throws Error for a file of other settings or with rows of another kind.
  CalibrationRows(const std::string& path, std::string_view backend, const Model& model, std::string_view text,
                  const CandidatePolicies& policies, const CalibrationShape& shape, int prefix,
                  KvType kv_type = KvType::Bf16);

  /// By plan and text.
  const std::map<std::pair<Candidate, int>, TextLoss>& losses() const { return losses_; }
  void add(const Candidate& plan, int text, const TextLoss& loss);

  /// Seconds of a decode step.
  std::optional<double> seconds(const std::string& what) const;
  void add_seconds(const std::string& what, double seconds);

 private:
  ResultFile file_;
  std::map<std::pair<Candidate, int>, TextLoss> losses_;
};

}  // namespace tidal
