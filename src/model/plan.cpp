#include "model/plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "backend/sketch.h"
#include "core/error.h"

namespace tidal {
namespace {

void check_share(double share, const char* what) {
  // Written so that NaN fails.
  if (!(share >= 0 && share <= 1)) fail("plan: the {} is {}, expected a share from 0 to 1", what, share);
}

void check_completion(const Policy& policy) {
  const auto [ranked, estimated] = policy.completion;
  if (ranked == 0 && estimated == 0) return;
  if (ranked < 1 || estimated < ranked || estimated > kMostBudgets) {
    fail("plan: {} budgets of positions ranked again and {} estimated, expected 1 to {}, and no fewer estimated",
         ranked, estimated, kMostBudgets);
  }
  if (policy.scope != Scope::Kv || policy.pooling != Pooling::Sum || policy.top_p < 1) {
    fail("plan: what is not selected can be estimated with scope kv, pooling sum and without top-p only");
  }
}

void check_policy(const Policy& policy) {
  if (policy.budget < 1) fail("plan: the budget is {}, expected at least 1", policy.budget);
  check_share(policy.budget_share, "budget's share of the context");
  check_share(policy.recent_share, "recent share of the budget");
  if (!(policy.top_p > 0 && policy.top_p <= 1)) {
    fail("plan: top-p is {}, expected a share of the attention mass above 0, at most 1", policy.top_p);
  }
  if (policy.top_p < 1 && policy.pooling == Pooling::Max && policy.scope != Scope::Head) {
    fail("plan: top-p needs the attention mass of the heads together, so pooling sum (or scope head), not max");
  }
  if (!is_sketch_width(policy.sketch_bits)) {
    fail("plan: a sketch of {} bits, expected 1, 2 or 4", policy.sketch_bits);
  }
  check_completion(policy);
  if (policy.sinks < 0 || policy.recent < 0) {
    fail("plan: {} sinks and {} recent positions, expected none or more", policy.sinks, policy.recent);
  }
  // At the smallest budget: shares only grow with it.
  const int recent = std::max(policy.at(0).recent, 1);
  if (int64_t{policy.sinks} + recent > policy.budget) {
    fail("plan: {} sinks and {} recent positions do not fit in a budget of {}", policy.sinks, recent, policy.budget);
  }
}

struct MeasuredModel {
  const char* architecture;
  int layers, width, kv_heads;
  int reselect;                 ///< 0: not measured
  std::vector<int> reuse = {};  ///< default_reuse()
  int dense = 0;                ///< default_dense()
};

// Models are told apart by shape, since names in files differ. Sources: LLaMA-2-7B and Llama-3-8B from TidalDecode
// (arXiv 2410.05076, section 4.4); the others from docs/plans.md.
const std::vector<MeasuredModel>& measured_models() {
  static const std::vector<MeasuredModel> models = {
      {"llama", 32, 4096, 32, 7},                               // LLaMA-2-7B
      {"llama", 32, 4096, 8, 13},                               // Llama-3-8B
      {"qwen2", 28, 1536, 2, 19},                               // Qwen2.5-1.5B
      {"qwen2", 24, 896, 2, 11, {1, 5, 6, 8, 14, 18, 19, 20}},  // Qwen2.5-0.5B
      {"llama", 30, 576, 3, 17},                                // SmolLM2-135M
      {"gemma3", 18, 640, 1, 0, {}, 1},                         // Gemma 3 270M
  };
  return models;
}

const MeasuredModel* measured(const Hyperparameters& hp) {
  for (const MeasuredModel& entry : measured_models()) {
    if (hp.architecture == entry.architecture && !hp.experts && hp.layers == entry.layers && hp.width == entry.width &&
        hp.kv_heads == entry.kv_heads) {
      return &entry;
    }
  }
  return nullptr;
}

constexpr int kFirstSelect = 2;  // of tidal plans

}  // namespace

Plan Plan::full(int layers) {
  Plan plan;
  plan.roles.assign(layers, Role::Dense);
  plan.policy = default_policy(plan.policy.budget);
  return plan;
}

Plan Plan::tidal(int layers, int reselect, const Policy& policy) {
  if (layers < kFirstSelect + 2) {
    fail(
        "plan: a model of {} layers is too shallow for Dense 0 and 1, Select {} and a reselect layer, at least {} are "
        "needed",
        layers, kFirstSelect, kFirstSelect + 2);
  }
  if (reselect <= kFirstSelect || reselect >= layers) {
    fail("reselect: layer {} is out of range, expected {} to {} for a model of {} layers", reselect, kFirstSelect + 1,
         layers - 1, layers);
  }
  Plan plan;
  plan.roles.assign(layers, Role::Sparse);
  plan.roles[0] = plan.roles[1] = Role::Dense;
  plan.roles[kFirstSelect] = plan.roles[reselect] = Role::Select;
  plan.policy = policy;
  return plan;
}

Plan Plan::tidal(const Hyperparameters& hp, int reselect, const Policy& policy) {
  const std::vector<int> layers = hp.layers_that_read_all();
  const auto count = static_cast<int>(layers.size());
  if (count == hp.layers) return tidal(hp.layers, reselect, policy);
  if (count < kFirstSelect + 2) {
    fail("plan: {} layers that read the whole context are too few for two Dense, a Select and a reselect layer", count);
  }
  const auto found = std::find(layers.begin() + kFirstSelect + 1, layers.end(), reselect);
  if (found == layers.end()) {
    fail("reselect: layer {} is none of those that can be, expected one of {}", reselect,
         fmt::join(layers.begin() + kFirstSelect + 1, layers.end(), ", "));
  }
  return tidal(count, static_cast<int>(found - layers.begin()), policy).among(hp);
}

Plan Plan::sketch(int layers, int dense, const Policy& policy) {
  if (dense < 0 || dense >= layers) {
    fail("plan: {} Dense layers of {}, expected 0 to {} so that one is left to scan", dense, layers, layers - 1);
  }
  Plan plan;
  plan.roles.assign(layers, Role::Scan);
  std::fill_n(plan.roles.begin(), dense, Role::Dense);
  plan.policy = policy;
  return plan;
}

Plan Plan::sketch(const Hyperparameters& hp, int dense, const Policy& policy) {
  const auto count = static_cast<int>(hp.layers_that_read_all().size());
  if (count == 0) fail("plan: no layer reads the whole context, so there is none to scan");
  return sketch(count, dense, policy).among(hp);
}

Plan Plan::among(const Hyperparameters& hp) const {
  Plan plan = *this;
  plan.roles.assign(static_cast<size_t>(hp.layers), Role::Dense);
  auto role = roles.begin();
  for (const int layer : hp.layers_that_read_all()) plan.roles[static_cast<size_t>(layer)] = *role++;
  return plan;
}

bool Plan::has_sparse() const { return std::any_of(roles.begin(), roles.end(), reads_selected); }

int Plan::count(Role role) const { return static_cast<int>(std::count(roles.begin(), roles.end(), role)); }

std::vector<int> Plan::layers(Role role) const {
  std::vector<int> layers;
  for (size_t l = 0; l < roles.size(); ++l) {
    if (roles[l] == role) layers.push_back(static_cast<int>(l));
  }
  return layers;
}

void Plan::check(const Hyperparameters& hp) const {
  if (static_cast<int>(roles.size()) != hp.layers) {
    fail("plan: it has {} layers, but the model has {}", roles.size(), hp.layers);
  }
  for (int l = 0; l < hp.layers; ++l) {
    if (!hp.reads_all(l) && roles[static_cast<size_t>(l)] != Role::Dense) {
      fail("plan: layer {} does not read the whole context, so it can be nothing but Dense, not {}", l,
           to_string(roles[static_cast<size_t>(l)]));
    }
  }
  const auto first_select = std::find_if(roles.begin(), roles.end(), selects);
  const auto first_sparse = std::find(roles.begin(), roles.end(), Role::Sparse);
  if (first_sparse < first_select) {
    fail("plan: layer {} is Sparse, but no layer before it is Select or Scan", first_sparse - roles.begin());
  }
  check_policy(policy);
  if (policy.completion && !scans()) fail("plan: what is not selected is estimated by Scan layers, and it has none");
  if (policy.completion && hp.score_cap > 0) {
    fail("plan: what is not selected cannot be estimated in a model that caps its scores");
  }
  if (correct < 0) fail("plan: correct is {}, expected a number of tokens, or 0 for never", correct);
  if (full_below < 0) {
    fail("plan: full_below is {}, expected a number of positions, or 0 for sparse decoding from the budget on",
         full_below);
  }
}

Policy default_policy(int budget) {
  Policy policy;
  policy.budget = budget;
  policy.recent = std::max(1, budget / 4);
  policy.sinks = std::clamp(budget - policy.recent, 0, 4);
  return policy;
}

Policy sketch_policy(int budget) {
  return {.scope = Scope::Kv, .pooling = Pooling::Sum, .budget = budget, .sinks = 0, .recent = 0};
}

Policy paper_policy(int budget) {
  return {.scope = Scope::Head, .pooling = Pooling::Max, .budget = budget, .sinks = 0, .recent = 0};
}

bool has_tidal_plans(const Hyperparameters& hp) { return hp.layers_that_read_all().size() > kFirstSelect + 1; }

int default_reselect(const Hyperparameters& hp) {
  if (reselect_is_measured(hp)) return measured(hp)->reselect;
  // Between the paper's 0.4 of the depth and the 0.46 to 0.68 of the models measured here; docs/plans.md tells how to
  // find a model's own.
  const std::vector<int> layers = hp.layers_that_read_all();
  const auto count = static_cast<int>(layers.size());
  if (!has_tidal_plans(hp)) return hp.layers;  // there is none, which Plan::tidal() says
  const int middle = std::max(kFirstSelect + 1, static_cast<int>(std::lround(0.45 * count)));
  return layers[static_cast<size_t>(middle)];
}

std::vector<int> default_reuse(const Hyperparameters& hp) {
  const MeasuredModel* entry = measured(hp);
  return entry ? entry->reuse : std::vector<int>();
}

int default_dense(const Hyperparameters& hp) {
  const MeasuredModel* entry = measured(hp);
  return entry ? entry->dense : 0;
}

bool reselect_is_measured(const Hyperparameters& hp) {
  const MeasuredModel* entry = measured(hp);
  return entry && entry->reselect > 0;
}

}  // namespace tidal
