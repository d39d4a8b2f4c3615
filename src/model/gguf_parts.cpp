#include "model/gguf_parts.h"

#include <cstring>
#include <filesystem>
#include <optional>

#include "core/error.h"
#include "core/utf8.h"

namespace tidal {
namespace {

template <typename T>
std::optional<T> value(const ScannedGguf& scanned, const char* key, gguf_type type, const std::string& name) {
  const auto found = scanned.keys.find(key);
  if (found == scanned.keys.end()) return std::nullopt;
  if (found->second.array || found->second.type != type) {
    fail("{}: key '{}' has type {}, expected {}", name, key, type_name(found->second), gguf_type_name(type));
  }
  T result;
  std::memcpy(&result, found->second.data, sizeof(result));
  return result;
}

/// "-00001-of-00003.gguf"
std::string ending(int index, int count) { return fmt::format("-{:05}-of-{:05}.gguf", index + 1, count); }

}  // namespace

Split read_split(const ScannedGguf& scanned, const std::string& name) {
  Split split;
  const auto count = value<uint16_t>(scanned, "split.count", GGUF_TYPE_UINT16, name);
  const auto index = value<uint16_t>(scanned, "split.no", GGUF_TYPE_UINT16, name);
  const auto tensors = value<int32_t>(scanned, "split.tensors.count", GGUF_TYPE_INT32, name);
  if (!count || *count < 2) return split;
  if (!index) fail("{}: key 'split.no' is missing in a part of a split model", name);
  if (!tensors) fail("{}: key 'split.tensors.count' is missing in a part of a split model", name);
  if (*index >= *count) fail("{}: key 'split.no' is {}, expected less than split.count, {}", name, *index, *count);
  return {*index, *count, *tensors};
}

void check_first_part(const Split& split, bool filled, const std::string& path) {
  if (split.index > 0) {
    const std::string own = ending(split.index, split.count), first = ending(0, split.count);
    fail("{}: is part {} of {} of a split model, expected the first, {}", path, split.index + 1, split.count,
         path.ends_with(own) ? file_name(path.substr(0, path.size() - own.size()) + first)
                             : "whose name ends in " + first);
  }
  if (split.count > 1 && !filled) {
    fail("{}: its tensors and their padding do not fill it exactly, as those of a part of a split model must", path);
  }
}

void check_part(const Split& split, const Split& first, int index, const std::string& path,
                const std::string& first_path) {
  if (split.count != first.count) {
    fail("{}: is {}, expected part {} of {} of the model that begins with {}", path,
         split.count > 1 ? fmt::format("part {} of {}", split.index + 1, split.count) : "a whole file", index + 1,
         first.count, file_name(first_path));
  }
  if (split.index != index) {
    fail("{}: says that it is part {} (split.no), expected part {} of {}", path, split.index + 1, index + 1,
         first.count);
  }
  if (split.tensors != first.tensors) {
    fail("{}: is a part of a model of {} tensors, but {} begins one of {}", path, split.tensors, file_name(first_path),
         first.tensors);
  }
}

std::string part_path(const std::string& first_path, int index, int count) {
  const std::string own = ending(0, count);
  if (!first_path.ends_with(own)) {
    fail(
        "{}: is the first of {} parts of a split model, expected a name that ends in {} so that the others can be "
        "found",
        first_path, count, own);
  }
  return first_path.substr(0, first_path.size() - own.size()) + ending(index, count);
}

void check_parts_exist(const std::string& first_path, int count) {
  constexpr int kShown = 10;  // more would fill the screen
  std::string missing;
  int number = 0;
  for (int index = 1; index < count; ++index) {
    const std::string path = part_path(first_path, index, count);
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) continue;
    if (++number <= kShown) missing += (missing.empty() ? "" : ", ") + file_name(path);
  }
  if (number == 0) return;
  if (number > kShown) missing += fmt::format(" and {} more", number - kShown);
  fail("{}: is the first of {} parts, and these are missing beside it: {}", first_path, count, missing);
}

}  // namespace tidal
