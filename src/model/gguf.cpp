#include "model/gguf.h"

#include <gguf.h>

#include <limits>

#include "core/error.h"
#include "model/gguf_scan.h"
#include "model/mapped_file.h"

namespace tidal {
namespace {

constexpr int64_t kAbsent = -1;

int64_t find(const gguf_context* gguf, std::string_view key) { return gguf_find_key(gguf, std::string(key).c_str()); }

[[noreturn]] void wrong_type(const std::string& path, std::string_view key, gguf_type type, const char* expected) {
  fail("{}: key '{}' has type {}, expected {}", path, key, gguf_type_name(type), expected);
}

/// The i-th integer at `data`; nullopt for types that are not integers or values beyond int64.
std::optional<int64_t> integer_at(const void* data, gguf_type type, size_t i) {
  switch (type) {
    case GGUF_TYPE_UINT8: return static_cast<const uint8_t*>(data)[i];
    case GGUF_TYPE_INT8: return static_cast<const int8_t*>(data)[i];
    case GGUF_TYPE_UINT16: return static_cast<const uint16_t*>(data)[i];
    case GGUF_TYPE_INT16: return static_cast<const int16_t*>(data)[i];
    case GGUF_TYPE_UINT32: return static_cast<const uint32_t*>(data)[i];
    case GGUF_TYPE_INT32: return static_cast<const int32_t*>(data)[i];
    case GGUF_TYPE_INT64: return static_cast<const int64_t*>(data)[i];
    case GGUF_TYPE_UINT64: {
      const uint64_t value = static_cast<const uint64_t*>(data)[i];
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  const MappedFile file = map_file(path);
  GgufFile gguf = parse(file.data, file.size, path);
  gguf.storage_ = file.storage;
  return gguf;
}

GgufFile GgufFile::parse(const std::byte* data, size_t size, const std::string& name) {
  GgufFile file;
  file.path_ = name;
  file.size_ = size;
  // The scan comes first: ggml's reader may trust what it has checked.
  for (ScannedTensor& tensor : scan_gguf(data, size, name)) {
    file.tensors_.emplace(std::move(tensor.name), tensor.weight);
  }
  file.gguf_ =
      std::shared_ptr<gguf_context>(gguf_init_from_buffer(data, size, {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (!file.gguf_) fail("{}: ggml cannot read it as a GGUF file", name);
  return file;
}

std::optional<std::string> GgufFile::text(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  if (type != GGUF_TYPE_STRING) wrong_type(path_, key, type, "a string");
  return gguf_get_val_str(gguf_.get(), id);
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  if (type == GGUF_TYPE_STRING || type == GGUF_TYPE_ARRAY) wrong_type(path_, key, type, "an integer");
  const auto value = integer_at(gguf_get_val_data(gguf_.get(), id), type, 0);
  if (!value) wrong_type(path_, key, type, "an integer below 2^63");
  return value;
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  switch (gguf_get_kv_type(gguf_.get(), id)) {
    case GGUF_TYPE_FLOAT32: return gguf_get_val_f32(gguf_.get(), id);
    case GGUF_TYPE_FLOAT64: return gguf_get_val_f64(gguf_.get(), id);
    default: return static_cast<double>(*integer(key));
  }
}

std::optional<bool> GgufFile::flag(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  if (type != GGUF_TYPE_BOOL) wrong_type(path_, key, type, "a bool");
  return gguf_get_val_bool(gguf_.get(), id);
}

std::optional<int64_t> GgufFile::array_size(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  if (type != GGUF_TYPE_ARRAY) wrong_type(path_, key, type, "an array");
  return static_cast<int64_t>(gguf_get_arr_n(gguf_.get(), id));
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const int64_t id = find(gguf_.get(), key);
  if (id == kAbsent) return std::nullopt;
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_ARRAY) return std::vector<int64_t>{*integer(key)};
  const gguf_type type = gguf_get_arr_type(gguf_.get(), id);
  if (type == GGUF_TYPE_STRING) wrong_type(path_, key, type, "an array of integers");
  const size_t count = gguf_get_arr_n(gguf_.get(), id);
  std::vector<int64_t> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto value = integer_at(gguf_get_arr_data(gguf_.get(), id), type, i);
    if (!value) wrong_type(path_, key, type, "an array of integers");
    values[i] = *value;
  }
  return values;
}

}  // namespace tidal
