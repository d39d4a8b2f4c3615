#include "text/json_schema.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "text/llama_log.h"
#ifdef TIDAL_JINJA
#include <json-schema-to-grammar.h>
#endif

namespace tidal {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostBytes = size_t{64} << 10;
constexpr int kMostCount = 1000;  // characters or elements that a grammar is to count

constexpr std::string_view kAnnotations[] = {"title",  "description", "default",    "examples", "$schema",
                                             "$id",    "$comment",    "deprecated", "readOnly", "writeOnly",
                                             "strict", "$defs",       "definitions"};
constexpr std::string_view kFormats[] = {"date", "time", "date-time", "uuid"};

template <size_t N>
bool among(std::string_view word, const std::string_view (&words)[N]) {
  return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

bool is_annotation(std::string_view keyword) { return among(keyword, kAnnotations); }

/// Walks through a schema and throws for what the grammar would leave out.
class Check {
 public:
  explicit Check(const Json& root) : root_(root) {}

  void schema(const Json& schema, const std::string& path) const {
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) fail("at {}: false allows nothing", path);
      return;
    }
    if (!schema.is_object()) fail("at {}: a schema is an object, got {}", path, schema.type_name());
    // Beside these the converter reads no other keyword.
    for (const char* alone : {"$ref", "anyOf", "allOf"}) {
      if (!schema.contains(alone)) continue;
      for (const auto& [name, value] : schema.items()) {
        if (name != alone && !is_annotation(name) && name != "type") {
          fail("at {}: '{}' beside '{}' cannot be enforced", path, name, alone);
        }
      }
    }
    for (const auto& [name, value] : schema.items()) keyword(schema, name, value, path);
  }

 private:
  void keyword(const Json& schema, const std::string& name, const Json& value, const std::string& path) const {
    const std::string at = path + "/" + name;
    if (name == "$defs" || name == "definitions" || name == "properties") {
      if (!value.is_object()) fail("at {}: expected an object", at);
      for (const auto& [key, child] : value.items()) this->schema(child, fmt::format("{}/{}", at, key));
    } else if (is_annotation(name) || name == "type" || name == "const") {
      return;
    } else if (name == "enum" || name == "required") {
      if (!value.is_array() || (name == "enum" && value.empty())) fail("at {}: expected a list", at);
      if (name == "required") required(schema, value, at);
    } else if (name == "anyOf" || name == "allOf" || name == "prefixItems") {
      if (!value.is_array() || value.empty()) fail("at {}: expected a list of schemas", at);
      if (name == "allOf" && value.size() > 1) fail("at {}: several schemas at once cannot be enforced", at);
      for (size_t i = 0; i < value.size(); ++i) this->schema(value[i], fmt::format("{}/{}", at, i));
    } else if (name == "items" || name == "additionalProperties") {
      if (!(name == "additionalProperties" && value.is_boolean())) this->schema(value, at);
    } else if (name == "minItems" || name == "maxItems" || name == "minLength" || name == "maxLength") {
      if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > kMostCount) {
        fail("at {}: expected a number from 0 to {}", at, kMostCount);
      }
      if (name.ends_with("Length") && schema.contains("pattern"))
        fail("at {}: beside 'pattern' it cannot be enforced", at);
    } else if (name == "minimum" || name == "maximum" || name == "exclusiveMinimum" || name == "exclusiveMaximum") {
      const auto type = schema.find("type");
      if (type == schema.end() || *type != "integer" || !value.is_number_integer()) {
        fail("at {}: it cannot be enforced but for whole numbers", at);
      }
    } else if (name == "pattern") {
      if (!value.is_string()) fail("at {}: expected a string", at);
    } else if (name == "format") {
      if (!value.is_string() || !among(value.get_ref<const std::string&>(), kFormats)) {
        fail("at {}: it cannot be enforced but for date, time, date-time and uuid", at);
      }
    } else if (name == "$ref") {
      reference(value, at);
    } else {
      fail("at {}: the keyword '{}' cannot be enforced", path, name);
    }
  }

  static void required(const Json& schema, const Json& names, const std::string& at) {
    const auto properties = schema.find("properties");
    for (const Json& name : names) {
      const bool known = name.is_string() && properties != schema.end() && properties->is_object() &&
                         properties->contains(name.get_ref<const std::string&>());
      if (!known) fail("at {}: {} is none of the properties, which cannot be enforced", at, name.dump());
    }
  }

  void reference(const Json& value, const std::string& at) const {
    if (!value.is_string() || !value.get_ref<const std::string&>().starts_with("#/")) {
      fail("at {}: expected a reference within the schema, such as #/$defs/NAME", at);
    }
    try {
      root_.at(Json::json_pointer(value.get_ref<const std::string&>().substr(1)));
    } catch (const Json::exception&) {
      fail("at {}: there is no {}", at, value.get_ref<const std::string&>());
    }
  }

  const Json& root_;
};

std::string convert(const std::string& schema) {
#ifdef TIDAL_JINJA
  try {
    // What it leaves out, such as a pattern that it does not know, it only prints.
    const CapturedStderr printed;
    std::string grammar = json_schema_to_grammar(common_json::parse(schema), true);
    if (const std::string left_out = printed.text(); !left_out.empty()) {
      fail("it cannot be made a grammar: {}", left_out.substr(0, 200));
    }
    return grammar;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail("it cannot be made a grammar: {}", error.what());
  }
#else
  (void)schema;
  fail("schemas need a build with libllama-common, this one has none");
#endif
}

}  // namespace

std::string grammar_of_schema(const std::string& schema) {
  if (schema.size() > kMostBytes) fail("it has {} bytes, expected at most {}", schema.size(), kMostBytes);
  Json json;
  try {
    json = Json::parse(schema);
  } catch (const Json::exception&) {
    fail("it is not JSON");
  }
  Check(json).schema(json, "#");
  return convert(schema);
}

std::string grammar_of_json_object() { return convert(R"({"type": "object"})"); }

}  // namespace tidal
