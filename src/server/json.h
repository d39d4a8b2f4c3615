// JSON that comes in, field by field: every wrong value is named.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace tidal::server {

using Json = nlohmann::ordered_json;  // a schema's properties have an order

/// Parses a body. Throws ApiError for what is no JSON, for more than 64 levels, and unless it is an object.
Json parse_object(std::string_view body);
/// Whether a text is JSON, of at most 64 levels.
bool is_json(std::string_view text);
/// As one line. Bytes that are no UTF-8, of a token that ends inside a character, become U+FFFD.
std::string dump(const Json& json);

/// The fields of an object. null counts as missing, as clients mean it. All throw ApiError, naming the field, for
/// another type and for a number out of range.
class Fields {
 public:
  /// `path`: what comes before the names of fields in messages, such as "messages[0]."
  explicit Fields(const Json& object, std::string path = "");

  const Json* find(const std::string& name) const;
  std::optional<bool> boolean(const std::string& name) const;
  std::optional<int64_t> integer(const std::string& name, int64_t least, int64_t most) const;
  std::optional<double> number(const std::string& name, double least, double most) const;
  /// Text without a NUL.
  std::optional<std::string> string(const std::string& name) const;
  const Json* array(const std::string& name) const;
  const Json* object(const std::string& name) const;
  std::string path(const std::string& name) const { return path_ + name; }

 private:
  const Json& object_;
  std::string path_;
};

/// The text of a value that has to be one. Throws ApiError naming `path`.
std::string text_of(const Json& value, const std::string& path);

}  // namespace tidal::server
