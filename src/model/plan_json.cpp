#include <cerrno>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/utf8.h"
#include "model/mapped_file.h"
#include "model/plan.h"

namespace tidal {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;

/// Access to one JSON object with messages that say where.
class Object {
 public:
  Object(const Json& json, std::string where, std::initializer_list<const char*> known)
      : json_(json), where_(std::move(where)) {
    if (!json.is_object()) fail("{} is not a JSON object", where_);
    for (const auto& [key, value] : json.items()) {
      if (std::none_of(known.begin(), known.end(), [&key = key](const char* name) { return key == name; })) {
        fail("{}: field '{}' is not known", where_, key);
      }
    }
  }

  const Json& at(const char* key) const {
    if (!json_.contains(key)) fail("{}: field '{}' is missing", where_, key);
    return json_[key];
  }
  std::string text(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) fail("{}: field '{}' is not a string", where_, key);
    return value.get<std::string>();
  }
  int integer(const char* key) const { return to_int(at(key), key); }
  double number(const char* key) const {
    const Json& value = at(key);
    if (!value.is_number()) fail("{}: field '{}' holds {}, expected a number", where_, key, value.dump());
    return value.get<double>();
  }
  bool has(const char* key) const { return json_.contains(key); }
  std::vector<int> integers(const char* key) const {
    const Json& value = at(key);
    if (!value.is_array()) fail("{}: field '{}' is not a list of layers", where_, key);
    std::vector<int> result;
    for (const Json& item : value) result.push_back(to_int(item, key));
    return result;
  }

 private:
  int to_int(const Json& value, const char* key) const {
    const bool fits = value.is_number_integer() && value.get<double>() >= std::numeric_limits<int>::min() &&
                      value.get<double>() <= std::numeric_limits<int>::max();
    if (!fits) fail("{}: field '{}' holds {}, expected an integer", where_, key, value.dump());
    return value.get<int>();
  }

  const Json& json_;
  std::string where_;
};

template <typename Enum>
Enum from_word(const char* what, const std::string& word, std::initializer_list<Enum> all) {
  std::string known;
  for (const Enum value : all) {
    if (word == to_string(value)) return value;
    known += (known.empty() ? "" : ", ") + std::string(to_string(value));
  }
  fail("{}: '{}' is not known, expected {}", what, word, known);
}

Plan parse(const Json& json, const std::string& name, const Hyperparameters& hp) {
  const Object top(json, name, {"tidal_plan", "model", "roles", "policy", "correct", "full_below", "about"});
  if (top.integer("tidal_plan") != kFormat) {
    fail("{}: is a plan of format {}, expected {}", name, top.integer("tidal_plan"), kFormat);
  }
  const Object model(top.at("model"), name + ": model", {"architecture", "layers", "width", "heads", "kv_heads"});
  const auto architecture = model.text("architecture");
  const int layers = model.integer("layers"), width = model.integer("width");
  if (architecture != hp.architecture || layers != hp.layers || width != hp.width) {
    fail("{}: is a plan for {} with {} layers of width {}, but the model is {} with {} layers of width {}", name,
         architecture, layers, width, hp.architecture, hp.layers, hp.width);
  }
  // Absent from plans of older versions.
  const int heads = model.has("heads") ? model.integer("heads") : hp.heads;
  const int kv_heads = model.has("kv_heads") ? model.integer("kv_heads") : hp.kv_heads;
  if (heads != hp.heads || kv_heads != hp.kv_heads) {
    fail("{}: is a plan for {} query and {} KV heads, but the model has {} and {}", name, heads, kv_heads, hp.heads,
         hp.kv_heads);
  }

  const Object roles(top.at("roles"), name + ": roles", {"dense", "select", "scan"});
  Plan plan;
  plan.roles.assign(layers, Role::Sparse);
  std::vector<bool> listed(static_cast<size_t>(layers), false);
  for (const Role role : {Role::Dense, Role::Select, Role::Scan}) {
    if (role == Role::Scan && !roles.has(to_string(role))) continue;  // absent where no layer scans
    for (const int layer : roles.integers(to_string(role))) {
      if (layer < 0 || layer >= layers) fail("{}: roles: layer {} is not one of {}", name, layer, layers);
      if (listed[static_cast<size_t>(layer)]) fail("{}: roles: layer {} stands there twice", name, layer);
      listed[static_cast<size_t>(layer)] = true;
      plan.roles[layer] = role;
    }
  }
  for (int l = 0; l < layers; ++l) {
    if (!listed[static_cast<size_t>(l)] && !hp.reads_all(l)) plan.roles[l] = Role::Dense;
  }
  const Object policy(top.at("policy"), name + ": policy",
                      {"scope", "pooling", "budget", "sinks", "recent", "budget_share", "recent_share", "top_p",
                       "sketch", "ranked", "estimated"});
  plan.policy = {.scope = scope_from(policy.text("scope")),
                 .pooling = pooling_from(policy.text("pooling")),
                 .budget = policy.integer("budget"),
                 .sinks = policy.integer("sinks"),
                 .recent = policy.integer("recent")};
  if (policy.has("budget_share")) plan.policy.budget_share = policy.number("budget_share");
  if (policy.has("recent_share")) plan.policy.recent_share = policy.number("recent_share");
  if (policy.has("top_p")) plan.policy.top_p = policy.number("top_p");
  if (policy.has("sketch")) plan.policy.sketch_bits = policy.integer("sketch");
  if (policy.has("ranked")) plan.policy.completion.ranked = policy.integer("ranked");
  if (policy.has("estimated")) plan.policy.completion.estimated = policy.integer("estimated");
  if (top.has("correct")) plan.correct = top.integer("correct");
  if (top.has("full_below")) plan.full_below = top.integer("full_below");
  if (top.has("about")) top.text("about");
  plan.check(hp);
  return plan;
}

}  // namespace

std::string to_json(const Plan& plan, const Hyperparameters& hp, const std::string& about) {
  std::vector<int> dense = plan.layers(Role::Dense);
  std::erase_if(dense, [&](int layer) { return !hp.reads_all(layer); });
  Json json = {{"tidal_plan", kFormat},
               {"model",
                {{"architecture", hp.architecture},
                 {"layers", hp.layers},
                 {"width", hp.width},
                 {"heads", hp.heads},
                 {"kv_heads", hp.kv_heads}}},
               {"roles", {{"dense", dense}, {"select", plan.layers(Role::Select)}}},
               {"policy",
                {{"scope", to_string(plan.policy.scope)},
                 {"pooling", to_string(plan.policy.pooling)},
                 {"budget", plan.policy.budget},
                 {"sinks", plan.policy.sinks},
                 {"recent", plan.policy.recent}}}};
  Json& policy = json["policy"];
  if (plan.policy.budget_share > 0) policy["budget_share"] = plan.policy.budget_share;
  if (plan.policy.recent_share > 0) policy["recent_share"] = plan.policy.recent_share;
  if (plan.policy.top_p < 1) policy["top_p"] = plan.policy.top_p;
  if (plan.scans()) {
    json["roles"]["scan"] = plan.layers(Role::Scan);
    policy["sketch"] = plan.policy.sketch_bits;
  }
  if (plan.policy.completion) {
    policy["ranked"] = plan.policy.completion.ranked;
    policy["estimated"] = plan.policy.completion.estimated;
  }
  if (plan.correct > 0) json["correct"] = plan.correct;
  if (plan.full_below > 0) json["full_below"] = plan.full_below;
  if (!about.empty()) json["about"] = as_utf8(about);  // it may name files
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Plan plan_from_json(const std::string& text, const std::string& name, const Hyperparameters& hp) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& error) {
    fail("{}: is not valid JSON at byte {}", name, error.byte);
  }
  try {
    return parse(json, name, hp);
  } catch (const Error& error) {
    // Errors of the plan itself do not know the file.
    const std::string message = error.what();
    if (message.starts_with(name)) throw;
    throw Error(name + ": " + message);
  }
}

Plan load_plan(const std::string& path, const Hyperparameters& hp) {
  const MappedFile file = map_file(path, "a plan");
  return plan_from_json({reinterpret_cast<const char*>(file.data), file.size}, path, hp);
}

void save_plan(const std::string& path, const Plan& plan, const Hyperparameters& hp, const std::string& about) {
  const std::string text = to_json(plan, hp, about);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!file) fail("{}: cannot be written: {}", path, std::strerror(errno));
  if (std::fwrite(text.data(), 1, text.size(), file.get()) != text.size() || std::fflush(file.get()) != 0) {
    fail("{}: cannot be written: {}", path, std::strerror(errno));
  }
}

const char* to_string(Role role) {
  switch (role) {
    case Role::Dense: return "dense";
    case Role::Select: return "select";
    case Role::Sparse: return "sparse";
    case Role::Scan: return "scan";
  }
  return "";
}

const char* to_string(Scope scope) {
  switch (scope) {
    case Scope::Head: return "head";
    case Scope::Kv: return "kv";
    case Scope::Shared: return "shared";
  }
  return "";
}

const char* to_string(Pooling pooling) { return pooling == Pooling::Max ? "max" : "sum"; }

Scope scope_from(const std::string& word) { return from_word("scope", word, {Scope::Head, Scope::Kv, Scope::Shared}); }

Pooling pooling_from(const std::string& word) { return from_word("pooling", word, {Pooling::Max, Pooling::Sum}); }

}  // namespace tidal
