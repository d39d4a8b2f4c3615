#include "server/api/read_events.h"

#include <algorithm>

namespace tidal::server {
namespace {

/// The most read ones, ascending; of equally read ones the lower.
std::vector<PositionReads> most_read(std::vector<PositionReads> positions) {
  if (positions.size() <= kMostPositionsTold) return positions;
  const auto end = positions.begin() + kMostPositionsTold;
  std::nth_element(positions.begin(), end, positions.end(), [](const PositionReads& a, const PositionReads& b) {
    return a.sets != b.sets ? a.sets > b.sets : a.position < b.position;
  });
  positions.erase(end, positions.end());
  std::sort(positions.begin(), positions.end(),
            [](const PositionReads& a, const PositionReads& b) { return a.position < b.position; });
  return positions;
}

Json step_json(const StepReads& step) {
  if (step.sets == 0) return {{"position", step.position}, {"all", true}};
  Json positions = Json::array();
  for (const auto& [position, sets] : most_read(step.positions)) positions.push_back(Json::array({position, sets}));
  const size_t left_out = step.positions.size() - positions.size();
  return {{"position", step.position}, {"sets", step.sets},      {"sinks", step.sinks},
          {"recent", step.recent},     {"positions", positions}, {"left_out", left_out}};
}

}  // namespace

Json reads_json(size_t index, const Reads& reads) {
  Json texts = Json::array();
  for (const TextSpan& span : reads.texts) {
    texts.push_back(span.pieces == 1 ? Json(span.text) : Json::array({span.text, span.pieces}));
  }
  Json json{{"index", index}, {"prompt", reads.prompt}, {"first", reads.first}, {"texts", std::move(texts)}};
  if (reads.step) json["reads"] = step_json(*reads.step);
  return json;
}

}  // namespace tidal::server
