#include "eval/candidate.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/error.h"

namespace tidal {
namespace {

Plan tidal_plan(const SelectLayers& select, int layers, const Policy& policy) {
  Plan plan;
  plan.policy = policy;
  plan.roles.assign(static_cast<size_t>(layers), Role::Sparse);
  int last = -1;
  for (const int l : select) {
    if (l <= last || l >= layers) {
      fail("plan: Select {} is no rising list of layers of {}", format_select(select), layers);
    }
    plan.roles[static_cast<size_t>(l)] = Role::Select;
    last = l;
  }
  const int dense = select.empty() ? layers : select.front();
  std::fill_n(plan.roles.begin(), dense, Role::Dense);
  return plan;
}

Plan sketch_plan(const Candidate& candidate, int layers, Policy policy) {
  policy.sketch_bits = candidate.bits;
  Plan plan = Plan::sketch(layers, candidate.dense, policy);
  int last = candidate.dense;  // must scan
  for (const int l : candidate.sparse) {
    if (l <= last || l >= layers) {
      fail("plan: Sparse {} is no rising list of layers from {} to {}", fmt::join(candidate.sparse, ", "),
           candidate.dense + 1, layers - 1);
    }
    plan.roles[static_cast<size_t>(l)] = Role::Sparse;
    last = l;
  }
  return plan;
}

}  // namespace

bool Candidate::operator<(const Candidate& other) const {
  return std::tie(kind, select, bits, dense, sparse) <
         std::tie(other.kind, other.select, other.bits, other.dense, other.sparse);
}

const char* to_string(PlanKind kind) { return kind == PlanKind::Tidal ? "tidal" : "sketch"; }

std::string format_select(const SelectLayers& select) {
  std::string text;
  for (size_t i = 0; i < select.size(); ++i) {
    if (i > 0) text += i == 1 ? " + " : ", ";
    text += std::to_string(select[i]);
  }
  return text;
}

Plan plan_with(const Candidate& candidate, int layers, const CandidatePolicies& policies) {
  return candidate.kind == PlanKind::Tidal ? tidal_plan(candidate.select, layers, policies.tidal)
                                           : sketch_plan(candidate, layers, policies.sketch);
}

Plan plan_with(const Candidate& candidate, const Hyperparameters& hp, const CandidatePolicies& policies) {
  return plan_with(candidate, static_cast<int>(hp.layers_that_read_all().size()), policies).among(hp);
}

std::string format_candidate(const Candidate& candidate) {
  if (candidate.kind == PlanKind::Tidal) return "Select " + format_select(candidate.select);
  std::string text = fmt::format("{}-bit Scan", candidate.bits);
  std::vector<int> dense(static_cast<size_t>(candidate.dense));
  std::iota(dense.begin(), dense.end(), 0);
  if (!dense.empty()) text += fmt::format(", Dense {}", fmt::join(dense, ", "));
  if (!candidate.sparse.empty()) text += fmt::format(", Sparse {}", fmt::join(candidate.sparse, ", "));
  return text;
}

std::string short_name(const Candidate& candidate) {
  if (candidate.kind == PlanKind::Tidal) return format_select(candidate.select);
  std::string text = fmt::format("{} bit", candidate.bits);
  if (candidate.dense > 0) text += fmt::format(", {} Dense", candidate.dense);
  if (!candidate.sparse.empty()) text += fmt::format(", {} Sparse", candidate.sparse.size());
  return text;
}

}  // namespace tidal
