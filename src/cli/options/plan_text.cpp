#include "cli/options/plan_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cli/options/plan_options.h"

namespace tidal {
namespace {

/// The layers of a role, of those that read the whole context.
std::vector<int> layers_of(const Plan& plan, Role role, const Hyperparameters& hp) {
  std::vector<int> layers = plan.layers(role);
  std::erase_if(layers, [&](int layer) { return !hp.reads_all(layer); });
  return layers;
}

// "2, 9": the layers of one role.
std::string layers_with(const Plan& plan, Role role, const Hyperparameters& hp) {
  const std::vector<int> layers = layers_of(plan, role, hp);
  return layers.empty() ? "none" : fmt::format("{}", fmt::join(layers, ", "));
}

std::string percent(double share) { return fmt::format("{:g}%", 100 * share); }

/// "2+9", and for layers in a row "0-4+9".
std::string layer_text(const std::vector<int>& layers) {
  std::string text;
  for (size_t first = 0; first < layers.size();) {
    size_t last = first;
    while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
    if (!text.empty()) text += "+";
    text += last > first ? fmt::format("{}-{}", layers[first], layers[last]) : std::to_string(layers[first]);
    first = last + 1;
  }
  return text;
}

/// "2+9"; layers in a row are not drawn together, since result files know plans by these names.
std::string joined(const std::vector<int>& layers) { return fmt::format("{}", fmt::join(layers, "+")); }

/// The roles of a plan with a Select layer and no Scan layer.
std::string select_text(const Plan& plan, const Hyperparameters& hp) {
  const std::vector<int> select = plan.layers(Role::Select);
  // Layers before the first Select can be nothing but Dense.
  std::vector<int> dense = layers_of(plan, Role::Dense, hp);
  std::erase_if(dense, [&](int layer) { return layer < select.front(); });
  return "select " + joined(select) + (dense.empty() ? "" : ", dense " + joined(dense));
}

/// The roles of a plan with a Scan layer; what it does not name scans.
std::string scan_text(const Plan& plan, const Hyperparameters& hp) {
  std::string text = "sketch " + bits_text(plan.policy);
  for (const Role role : {Role::Dense, Role::Select, Role::Sparse}) {
    const std::vector<int> layers = layers_of(plan, role, hp);
    if (!layers.empty()) text += fmt::format(", {} {}", to_string(role), layer_text(layers));
  }
  return text;
}

/// Whether a policy reserves the recent positions of the default one, `usual` of a budget: a share of the budget that
/// is a share of the context itself.
bool default_recent(const Policy& policy, Policy (*usual)(int budget)) {
  if (policy.budget_share == 0) return policy.recent_share == 0 && policy.recent == usual(policy.budget).recent;
  const Policy of_share = usual(Policy{}.budget);
  if (of_share.recent == 0) return policy.recent_share == 0 && policy.recent == 0;
  return policy.recent_share == static_cast<double>(of_share.recent) / of_share.budget;
}

/// What differs from the default policy of the plan's kind.
std::string policy_text(const Policy& policy, bool scans) {
  Policy paper = paper_policy(policy.budget);
  paper.budget_share = policy.budget_share;
  paper.top_p = policy.top_p;
  paper.sketch_bits = policy.sketch_bits;
  paper.completion = policy.completion;
  if (policy == paper && !scans) return ", paper";
  const auto make_usual = scans ? sketch_policy : default_policy;
  const Policy usual = make_usual(policy.budget);
  std::string text;
  if (policy.scope != usual.scope) text += fmt::format(", scope {}", to_string(policy.scope));
  if (policy.pooling != usual.pooling) text += fmt::format(", pooling {}", to_string(policy.pooling));
  if (policy.sinks != usual.sinks) text += fmt::format(", sinks {}", policy.sinks);
  if (!default_recent(policy, make_usual)) {
    text += policy.recent_share > 0 ? fmt::format(", recent {:g}%", 100 * policy.recent_share)
                                    : fmt::format(", recent {}", policy.recent);
  }
  return text;
}

/// "Dense 0, 1; Select 2, 9 (given); Sparse the other 20".
std::string roles_text(const Plan& plan, const std::string& source, const Hyperparameters& hp) {
  const int scan = plan.count(Role::Scan), sparse = plan.count(Role::Sparse), select = plan.count(Role::Select);
  if (scan == 0) {
    return fmt::format("Dense {}; Select {} ({}); Sparse the other {}", layers_with(plan, Role::Dense, hp),
                       layers_with(plan, Role::Select, hp), source, sparse);
  }
  std::string text;
  if (!layers_of(plan, Role::Dense, hp).empty()) {
    text += fmt::format("Dense {}; ", layers_with(plan, Role::Dense, hp));
  }
  if (select > 0) text += fmt::format("Select {}; ", layers_with(plan, Role::Select, hp));
  // Of those that can.
  const bool all = scan == static_cast<int>(hp.layers > 0 ? hp.layers_that_read_all().size() : plan.roles.size());
  text += "Scan ";
  text += all          ? fmt::format("all {}", scan)
          : sparse > 0 ? layers_with(plan, Role::Scan, hp)
                       : fmt::format("the other {}", scan);
  text += fmt::format(" by {} ({})", bits_text(plan.policy), source);
  if (sparse > 0) text += fmt::format("; Sparse the other {}", sparse);
  if (const std::string others = other_layers_text(hp); !others.empty()) text += "; " + others;
  return text;
}

}  // namespace

std::string bits_text(const Policy& policy) {
  return fmt::format("{} bit{}", policy.sketch_bits, policy.sketch_bits == 1 ? "" : "s");
}

std::string budget_text(const Policy& policy) {
  std::string text = policy.budget_share > 0 ? fmt::format("{},{}", percent(policy.budget_share), policy.budget)
                                             : std::to_string(policy.budget);
  if (policy.top_p < 1) text += fmt::format(" at top-p {:g}", policy.top_p);
  if (const auto& [ranked, estimated] = policy.completion; ranked > 0) {
    text += fmt::format(" completed {}:{}", ranked, estimated);
  }
  return text;
}

std::string other_layers_text(const Hyperparameters& hp) {
  std::set<int> windows;
  int count = 0;
  for (int l = 0; l < hp.layers; ++l) {
    if (hp.window(l) == 0) continue;
    windows.insert(hp.window(l));
    ++count;
  }
  if (hp.recurrent_layers() > 0) return fmt::format("{} of {} layers recurrent", hp.recurrent_layers(), hp.layers);
  return count == 0 ? ""
                    : fmt::format("{} of {} layers with a window of {}", count, hp.layers, fmt::join(windows, ", "));
}

std::string describe(const Plan& plan, const std::string& source, const Hyperparameters& hp) {
  if (!plan.has_sparse()) {
    const std::string others = other_layers_text(hp);
    return others.empty() ? "full attention in all layers" : "full attention, " + others;
  }
  const Policy& policy = plan.policy;
  const std::string recent =
      policy.recent_share > 0 ? percent(policy.recent_share) : std::to_string(std::max(policy.recent, 1));
  return fmt::format("{} attention: {}; budget {} ({} sinks, {} recent), scope {}, pooling {}{}{}", kind_of(plan),
                     roles_text(plan, source, hp), budget_text(policy), policy.sinks, recent, to_string(policy.scope),
                     to_string(policy.pooling),
                     plan.correct > 0 ? fmt::format("; corrected every {} tokens", plan.correct) : "",
                     plan.full_below > 0 ? fmt::format("; full attention below {} positions", plan.full_below) : "");
}

std::string plan_name(const Plan& plan, const Hyperparameters& hp) {
  if (!plan.has_sparse()) return "full";
  const bool scans = plan.scans();
  std::string text = fmt::format("K={}, {}{}", budget_text(plan.policy),
                                 scans ? scan_text(plan, hp) : select_text(plan, hp), policy_text(plan.policy, scans));
  if (plan.correct > 0) text += fmt::format(", correct {}", plan.correct);
  if (plan.full_below > 0) text += fmt::format(", full below {}", plan.full_below);
  return text;
}

}  // namespace tidal
