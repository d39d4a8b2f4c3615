#include "model/gguf.h"

#include <cstring>

#include "core/error.h"
#include "model/gguf_parts.h"
#include "model/mapped_file.h"

namespace tidal {
namespace {

template <typename T>
T value_at(const std::byte* data, size_t index = 0) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  const auto files = std::make_shared<std::vector<MappedFile>>();
  const auto map = [&](const std::string& part) {
    const MappedFile& file = files->emplace_back(map_file(part));
    return GgufBytes{part, file.data, file.size};
  };
  GgufFile gguf = read(map(path), [&](int index, int count) {
    if (index == 1) check_parts_exist(path, count);
    return map(part_path(path, index, count));
  });
  gguf.storage_ = files;
  return gguf;
}

GgufFile GgufFile::parse(std::span<const GgufBytes> parts) {
  if (parts.empty()) fail("gguf: no bytes given, expected a file");
  return read(parts.front(), [&](int index, int count) {
    if (static_cast<size_t>(count) != parts.size()) {
      fail("{}: is a part of a model of {}, but {} are given", parts.front().name, count, parts.size());
    }
    return parts[index];
  });
}

GgufFile GgufFile::parse(const std::byte* data, size_t size, const std::string& name) {
  const GgufBytes bytes{name, data, size};
  return parse({&bytes, 1});
}

GgufFile GgufFile::read(const GgufBytes& first, const std::function<GgufBytes(int, int)>& part) {
  GgufFile file;
  file.path_ = first.name;
  ScannedGguf scanned = scan_gguf(first.data, first.size, first.name);
  const Split split = read_split(scanned, first.name);
  check_first_part(split, scanned.filled, first.name);
  const uint64_t alignment = scanned.alignment;
  file.keys_ = std::move(scanned.keys);
  file.add(std::move(scanned), first);
  for (int index = 1; index < split.count; ++index) {
    const GgufBytes bytes = part(index, split.count);
    ScannedGguf next = scan_gguf_part(bytes.data, bytes.size, bytes.name, alignment);
    check_part(read_split(next, bytes.name), split, index, bytes.name, first.name);
    file.add(std::move(next), bytes);
  }
  if (split.count > 1 && static_cast<int64_t>(file.tensors_.size()) != split.tensors) {
    fail("{}: its {} parts hold {} tensors, expected {} (split.tensors.count)", first.name, split.count,
         file.tensors_.size(), split.tensors);
  }
  return file;
}

void GgufFile::add(ScannedGguf scanned, const GgufBytes& part) {
  file_bytes_ += static_cast<int64_t>(part.size);
  for (ScannedTensor& tensor : scanned.tensors) {
    const auto [entry, added] = tensors_.emplace(std::move(tensor.name), tensor.weight);
    if (!added) {
      const auto other = std::prev(parts_.upper_bound(entry->second.data));
      fail("{}: tensor '{}' stands in {}, too", part.name, entry->first, other->second);
    }
  }
  parts_.emplace(part.data, part.name);
}

const ScannedValue* GgufFile::find(std::string_view key) const {
  const auto found = keys_.find(key);
  return found == keys_.end() ? nullptr : &found->second;
}

const std::byte* GgufFile::single(std::string_view key, gguf_type type, const char* expected) const {
  const ScannedValue* value = find(key);
  if (!value) return nullptr;
  if (value->array || value->type != type) {
    fail("{}: key '{}' has type {}, expected {}", path_, key, type_name(*value), expected);
  }
  return value->data;
}

std::optional<std::string> GgufFile::text(std::string_view key) const {
  const std::byte* data = single(key, GGUF_TYPE_STRING, "a string");
  if (!data) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(data) + sizeof(uint64_t), value_at<uint64_t>(data));
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const std::byte* data = single(key, GGUF_TYPE_UINT32, "u32");
  if (!data) return std::nullopt;
  return value_at<uint32_t>(data);
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const std::byte* data = single(key, GGUF_TYPE_FLOAT32, "f32");
  if (!data) return std::nullopt;
  return value_at<float>(data);
}

std::optional<bool> GgufFile::flag(std::string_view key) const {
  const std::byte* data = single(key, GGUF_TYPE_BOOL, "a bool");
  if (!data) return std::nullopt;
  return value_at<uint8_t>(data) != 0;
}

bool GgufFile::is_array(std::string_view key) const {
  const ScannedValue* value = find(key);
  return value && value->array;
}

std::optional<int64_t> GgufFile::array_size(std::string_view key) const {
  const ScannedValue* value = find(key);
  if (!value) return std::nullopt;
  if (!value->array) fail("{}: key '{}' has type {}, expected an array", path_, key, type_name(*value));
  return static_cast<int64_t>(value->count);
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const ScannedValue* value = find(key);
  if (!value) return std::nullopt;
  if (!value->array) return std::vector<int64_t>{*integer(key)};
  const auto read = [&](auto element) {
    std::vector<int64_t> values(value->count);
    for (size_t i = 0; i < values.size(); ++i) values[i] = element(i);
    return values;
  };
  switch (value->type) {
    case GGUF_TYPE_INT32: return read([&](size_t i) { return int64_t{value_at<int32_t>(value->data, i)}; });
    case GGUF_TYPE_UINT32: return read([&](size_t i) { return int64_t{value_at<uint32_t>(value->data, i)}; });
    case GGUF_TYPE_BOOL: return read([&](size_t i) { return int64_t{value_at<uint8_t>(value->data, i) != 0}; });
    default:
      fail("{}: key '{}' is an array of {}, expected one of u32, i32 or bool", path_, key, gguf_type_name(value->type));
  }
}

}  // namespace tidal
