#include "server/json.h"

#include <cmath>

#include "server/error.h"

namespace tidal::server {
namespace {

constexpr int kMostLevels = 64;

/// What a message says of a wrong value; never all of a long one.
std::string shown(const Json& value) {
  std::string text = dump(value);
  constexpr size_t kMost = 60;
  if (text.size() > kMost) text = std::string("this ") + value.type_name();
  return text;
}

}  // namespace

void refuse_for_now() { throw ApiError(429, "rate_limit_error", "too many requests wait already, try again later"); }

std::string error_body(int status, const std::string& message, const std::string& type, const std::string& param,
                       const ApiError::Numbers& numbers) {
  Json error{{"message", message}};
  error["type"] = !type.empty() ? type : status >= 500 ? "server_error" : "invalid_request_error";
  error["param"] = param.empty() ? Json() : Json(param);
  error["code"] = status;
  for (const auto& [name, number] : numbers) error[name] = number;
  return dump({{"type", "error"}, {"error", error}});  // the first is Anthropic's
}

Json parse_object(std::string_view body) {
  if (body.empty()) refuse("", "the body is empty, expected a JSON object");
  Json json;
  try {
    json = Json::parse(body, [](int depth, Json::parse_event_t, Json&) {
      if (depth > kMostLevels) refuse("", "the body has more than {} levels of JSON", kMostLevels);
      return true;
    });
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string_view what = error.what();
    const size_t end = what.find("] ");
    refuse("", "the body is not JSON: {}", end == std::string_view::npos ? what : what.substr(end + 2));
  }
  if (!json.is_object()) refuse("", "the body is a JSON {}, expected an object", json.type_name());
  return json;
}

bool is_json(std::string_view text) {
  bool deep = false;
  const Json json = Json::parse(
      text,
      [&](int depth, Json::parse_event_t, Json&) {
        deep = deep || depth > kMostLevels;
        return !deep;
      },
      false);
  return !deep && !json.is_discarded();
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {}

const Json* Fields::find(const std::string& name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> Fields::boolean(const std::string& name) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) refuse(path(name), "'{}': {} given, expected true or false", path(name), shown(*value));
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const std::string& name, int64_t least, int64_t most) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  // Whole numbers as 5.0 come from languages that have no others.
  if (!(number == std::floor(number) && number >= static_cast<double>(least) && number <= static_cast<double>(most))) {
    refuse(path(name), "'{}': {} given, expected a whole number from {} to {}", path(name), shown(*value), least, most);
  }
  return value->is_number_float() ? static_cast<int64_t>(number) : value->get<int64_t>();
}

std::optional<double> Fields::number(const std::string& name, double least, double most) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= least && number <= most)) {
    refuse(path(name), "'{}': {} given, expected a number from {} to {}", path(name), shown(*value), least, most);
  }
  return number;
}

std::optional<std::string> Fields::string(const std::string& name) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  return text_of(*value, path(name));
}

const Json* Fields::array(const std::string& name) const {
  const Json* value = find(name);
  if (value && !value->is_array()) refuse(path(name), "'{}': {} given, expected an array", path(name), shown(*value));
  return value;
}

const Json* Fields::object(const std::string& name) const {
  const Json* value = find(name);
  if (value && !value->is_object()) refuse(path(name), "'{}': {} given, expected an object", path(name), shown(*value));
  return value;
}

std::string text_of(const Json& value, const std::string& path) {
  if (!value.is_string()) refuse(path, "'{}': {} given, expected a string", path, shown(value));
  const auto& text = value.get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) refuse(path, "'{}': it holds a NUL, expected text", path);
  return text;
}

}  // namespace tidal::server
