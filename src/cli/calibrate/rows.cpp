#include "cli/calibrate/rows.h"

#include <limits>

#include "core/error.h"

namespace tidal {
namespace {

using Json = ResultFile::Json;

/// FNV-1a, 64 bits.
std::string fingerprint(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

Json to_json(const Policy& policy) {
  return {{"scope", to_string(policy.scope)},
          {"pooling", to_string(policy.pooling)},
          {"budget", policy.budget},
          {"sinks", policy.sinks},
          {"recent", policy.recent},
          {"budget_share", policy.budget_share},
          {"recent_share", policy.recent_share},
          {"top_p", policy.top_p},
          {"ranked", policy.completion.ranked},
          {"estimated", policy.completion.estimated}};
}

Json header(std::string_view backend, const Model& model, std::string_view text, const CandidatePolicies& policies,
            const CalibrationShape& shape, int prefix, KvType kv_type) {
  const Hyperparameters& hp = model.hp;
  Json json = {{"tidal_calibration", 3},
               {"backend", backend},
               {"model",
                {{"architecture", hp.architecture},
                 {"layers", hp.layers},
                 {"width", hp.width},
                 {"heads", hp.heads},
                 {"kv_heads", hp.kv_heads},
                 {"vocab", hp.vocab},
                 {"file_bytes", model.file_bytes}}},
               {"text", {{"bytes", text.size()}, {"fnv1a", fingerprint(text)}}},
               {"policy", to_json(policies.tidal)},
               {"scan_policy", to_json(policies.sketch)},
               {"prefix", prefix},
               {"steps", shape.steps},
               {"stretches", shape.stretches},
               {"places", shape.places},
               {"prompts", shape.prompts},
               {"held_out", shape.held_out}};
  if (kv_type != KvType::Bf16) json["kv_type"] = kv_type_name(kv_type);
  return json;
}

/// What tells a plan from the others: {"select": [...]} or {"bits": 2, "dense": 0, "sparse": [...]}.
Json key(const Candidate& plan) {
  if (plan.kind == PlanKind::Tidal) return {{"select", plan.select}};
  return {{"bits", plan.bits}, {"dense", plan.dense}, {"sparse", plan.sparse}};
}

Candidate candidate(const Json& row) {
  if (row.contains("select")) return Candidate::tidal(row.at("select").get<SelectLayers>());
  return Candidate::sketch(row.at("bits").get<int>(), row.at("dense").get<int>(),
                           row.at("sparse").get<std::vector<int>>());
}

/// JSON has no NaN: null stands for it.
double number(const Json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

}  // namespace

CalibrationRows::CalibrationRows(const std::string& path, std::string_view backend, const Model& model,
                                 std::string_view text, const CandidatePolicies& policies,
                                 const CalibrationShape& shape, int prefix, KvType kv_type)
    : file_(path, header(backend, model, text, policies, shape, prefix, kv_type)) {
  for (const Json& row : file_.rows()) {
    try {
      if (row.contains("seconds")) continue;
      losses_[{candidate(row), row.at("text").get<int>()}] = {row.at("tokens").get<int64_t>(), number(row.at("kl_sum")),
                                                              number(row.at("kl_squares"))};
    } catch (const Json::exception&) {
      fail("{}: holds a row that is no measurement of a plan; remove the file", path);
    }
  }
}

void CalibrationRows::add(const Candidate& plan, int text, const TextLoss& loss) {
  Json row = key(plan);
  row.update({{"text", text}, {"tokens", loss.tokens}, {"kl_sum", loss.sum}, {"kl_squares", loss.squares}});
  file_.add(row);
}

std::optional<double> CalibrationRows::seconds(const std::string& what) const {
  const Json* row = file_.find({{"step", what}});
  if (!row || !row->contains("seconds") || !(*row)["seconds"].is_number()) return std::nullopt;
  return (*row)["seconds"].get<double>();
}

void CalibrationRows::add_seconds(const std::string& what, double seconds) {
  file_.add({{"step", what}, {"seconds", seconds}});
}

}  // namespace tidal
