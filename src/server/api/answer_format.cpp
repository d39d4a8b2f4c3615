#include "server/api/answer_format.h"

#include "core/error.h"
#include "server/error.h"
#include "text/json_schema.h"

namespace tidal::server {
namespace {

/// "" for none.
std::string grammar_of(const Json& given, const std::string& path) {
  const Fields format(given, path + ".");
  const std::string type = format.string("type").value_or("text");
  const Json* schema = format.object("schema");
  if (type == "json_schema") {
    const Json* named = format.object("json_schema");
    if (named) schema = Fields(*named, format.path("json_schema.")).object("schema");
    if (!schema) refuse(path, "'{}': json_schema without a schema", path);
  } else if (type != "text" && type != "json_object") {
    refuse(path, "'{}.type': '{}' given, expected text, json_object or json_schema", path, type.substr(0, 60));
  }
  if (type == "text") return "";
  try {
    return schema ? grammar_of_schema(dump(*schema)) : grammar_of_json_object();
  } catch (const Error& error) {
    refuse(path, "'{}': its schema, {}", path, error.what());
  }
}

}  // namespace

void hold_to_format(const Json* format, const std::string& path, const ChatOptions& options, Generation& generation) {
  if (!format) return;
  std::string grammar = grammar_of(*format, path);
  if (grammar.empty()) return;
  if (!options.tools.empty()) refuse(path, "'{}': give either this or tools, not both", path);
  if (!generation.sampler.grammar.empty()) refuse(path, "'{}': give either this or a grammar, not both", path);
  generation.sampler.grammar = std::move(grammar);
}

}  // namespace tidal::server
