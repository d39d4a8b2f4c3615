#include "model/gguf_scan.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/error.h"

namespace tidal {
namespace {

/// Reads little-endian values and refuses to go past the end.
class Reader {
 public:
  Reader(const std::byte* data, size_t size, const std::string& name) : data_(data), size_(size), name_(name) {}

  template <typename T>
  T read(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }
  std::string_view text(const char* what) {
    const auto length = read<uint64_t>(what);
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
  }
  const std::byte* take(uint64_t bytes, const char* what) {
    if (bytes > size_ - at_) {
      fail("{}: {} at byte {} needs {} bytes, but the file ends at byte {}; is it truncated?", name_, what, at_, bytes,
           size_);
    }
    const std::byte* start = data_ + at_;
    at_ += static_cast<size_t>(bytes);
    return start;
  }
  size_t at() const { return at_; }
  size_t left() const { return size_ - at_; }
  const std::string& name() const { return name_; }

 private:
  const std::byte* data_;
  size_t size_;
  size_t at_ = 0;
  const std::string& name_;
};

/// Bytes of one value of a fixed-size type; 0 for strings, arrays and unknown types.
size_t value_bytes(uint32_t type) {
  switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL: return 1;
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16: return 2;
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_FLOAT32: return 4;
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_FLOAT64: return 8;
    default: return 0;
  }
}

ScannedValue read_value(Reader& reader, std::string_view key) {
  auto type = reader.read<uint32_t>("a value's type");
  ScannedValue value;
  value.array = type == GGUF_TYPE_ARRAY;
  if (value.array) {
    type = reader.read<uint32_t>("an array's type");
    value.count = reader.read<uint64_t>("an array's length");
  }
  value.type = static_cast<gguf_type>(type);
  if (type == GGUF_TYPE_STRING) {
    if (value.count > reader.left() / sizeof(uint64_t)) {
      fail("{}: key '{}' claims {} strings in the {} bytes that are left", reader.name(), key, value.count,
           reader.left());
    }
    value.data = reader.take(0, "a string");
    for (uint64_t i = 0; i < value.count; ++i) reader.text("a string");
    return value;
  }
  const size_t bytes = value_bytes(type);
  if (bytes == 0) fail("{}: key '{}' has the unknown value type {}", reader.name(), key, type);
  if (value.count > reader.left() / bytes) {
    fail("{}: key '{}' claims {} values of {} bytes in the {} bytes that are left", reader.name(), key, value.count,
         bytes, reader.left());
  }
  value.data = reader.take(value.count * bytes, "a value");
  return value;
}

struct Header {
  uint64_t tensors;
  uint64_t keys;
};

Header read_header(Reader& reader) {
  const std::byte* magic = reader.take(4, "the magic");
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    fail("{}: is not a GGUF file: it does not begin with the four letters GGUF", reader.name());
  }
  const auto version = reader.read<uint32_t>("the version");
  if (version != 0 && (version & 0xFFFF) == 0) {
    fail("{}: is a big-endian GGUF file, expected a little-endian one", reader.name());
  }
  if (version < 2 || version > GGUF_VERSION) {
    fail("{}: is a GGUF file of version {}, expected 2 or {}", reader.name(), version, GGUF_VERSION);
  }
  const auto tensors = reader.read<uint64_t>("the number of tensors");
  const auto keys = reader.read<uint64_t>("the number of keys");
  // A key takes at least 13 bytes and a tensor 24, so larger counts are lies.
  if (tensors > reader.left() / 24) fail("{}: claims {} tensors, more than fit in the file", reader.name(), tensors);
  if (keys > reader.left() / 13) fail("{}: claims {} keys, more than fit in the file", reader.name(), keys);
  return {tensors, keys};
}

/// What ggml once read by these numbers, "" for numbers that it never used.
const char* former_type(uint32_t type) {
  switch (type) {
    case 4: return "Q4_2";
    case 5: return "Q4_3";
    case 31: return "Q4_0_4_4";
    case 32: return "Q4_0_4_8";
    case 33: return "Q4_0_8_8";
    case 36: return "IQ4_NL_4_4";
    case 37: return "IQ4_NL_4_8";
    case 38: return "IQ4_NL_8_8";
    default: return "";
  }
}

ggml_type known_type(uint32_t type, std::string_view tensor, const std::string& file) {
  if (*former_type(type)) {
    fail("{}: tensor '{}' has type {} ({}), which ggml no longer reads, expected a file converted anew", file, tensor,
         type, former_type(type));
  }
  const auto known = type < GGML_TYPE_COUNT ? static_cast<ggml_type>(type) : GGML_TYPE_COUNT;
  if (known == GGML_TYPE_COUNT || ggml_blck_size(known) == 0 || ggml_type_size(known) == 0) {
    fail("{}: tensor '{}' has the unknown type {}, this ggml has 0 to {}", file, tensor, type, GGML_TYPE_COUNT - 1);
  }
  return known;
}

struct TensorHeader {
  ScannedTensor tensor;
  uint64_t offset;
};

TensorHeader read_tensor(Reader& reader) {
  const std::string& file = reader.name();
  TensorHeader header;
  const std::string_view name = reader.text("a tensor's name");
  if (name.empty() || name.size() >= GGML_MAX_NAME) {
    fail("{}: a tensor's name has {} bytes, expected 1 to {}", file, name.size(), GGML_MAX_NAME - 1);
  }
  header.tensor.name = name;
  const auto dimensions = reader.read<uint32_t>("a tensor's number of dimensions");
  if (dimensions < 1 || dimensions > GGML_MAX_DIMS) {
    fail("{}: tensor '{}' has {} dimensions, expected 1 to {}", file, name, dimensions, GGML_MAX_DIMS);
  }
  // Far above any real matrix, far below where bytes could overflow: a block of any type is less than 2^12 bytes.
  constexpr uint64_t kMostElements = uint64_t{1} << 50;
  uint64_t sizes[GGML_MAX_DIMS] = {1, 1, 1, 1};
  uint64_t elements = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    sizes[d] = reader.read<uint64_t>("a tensor's dimension");
    if (sizes[d] == 0 || sizes[d] > kMostElements / elements) {
      fail("{}: tensor '{}' has an impossible dimension of {} elements", file, name, sizes[d]);
    }
    elements *= sizes[d];
  }
  const auto type = reader.read<uint32_t>("a tensor's type");
  const ggml_type known = known_type(type, name, file);
  if (sizes[0] % static_cast<uint64_t>(ggml_blck_size(known)) != 0) {
    fail("{}: tensor '{}' has rows of {} elements, expected a multiple of {} for type {}", file, name, sizes[0],
         ggml_blck_size(known), ggml_type_name(known));
  }
  header.tensor.weight.type = known;
  header.tensor.weight.cols = static_cast<int64_t>(sizes[0]);
  header.tensor.weight.rows = static_cast<int64_t>(elements / sizes[0]);
  header.offset = reader.read<uint64_t>("a tensor's offset");
  return header;
}

void check_overlap(std::vector<ScannedTensor> tensors, const std::string& name) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.weight.data < b.weight.data; });
  for (size_t i = 1; i < tensors.size(); ++i) {
    const Weight& before = tensors[i - 1].weight;
    if (before.data + before.bytes() > tensors[i].weight.data) {
      fail("{}: tensors '{}' and '{}' overlap", name, tensors[i - 1].name, tensors[i].name);
    }
  }
}

/// llama.cpp takes any power of two; above a page there is nothing to gain, only arithmetic to overflow.
uint64_t checked_alignment(const ScannedValue& value, const std::string& name) {
  uint32_t alignment = 0;
  if (value.type == GGUF_TYPE_UINT32 && !value.array) std::memcpy(&alignment, value.data, sizeof(alignment));
  if (alignment < 8 || alignment > (uint32_t{1} << 20) || (alignment & (alignment - 1)) != 0) {
    fail("{}: {} must be an unsigned power of two from 8 to 2^20", name, GGUF_KEY_GENERAL_ALIGNMENT);
  }
  return alignment;
}

uint64_t padded(uint64_t bytes, uint64_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

/// A file's keys, and its tensors before anyone knows where their data lies.
struct Headers {
  ScannedGguf gguf;  ///< without tensors
  std::vector<TensorHeader> tensors;
  uint64_t end = 0;  ///< of the last header
};

Headers read_headers(const std::byte* data, size_t size, const std::string& name) {
  Reader reader(data, size, name);
  const Header counts = read_header(reader);
  Headers headers;
  auto& keys = headers.gguf.keys;
  for (uint64_t i = 0; i < counts.keys; ++i) {
    const std::string_view key = reader.text("a key");
    if (key.empty()) fail("{}: key {} has no name", name, i);
    if (keys.contains(key)) fail("{}: key '{}' stands in the file twice", name, key);
    keys.emplace(key, read_value(reader, key));
  }
  if (const auto alignment = keys.find(GGUF_KEY_GENERAL_ALIGNMENT); alignment != keys.end()) {
    headers.gguf.alignment = checked_alignment(alignment->second, name);
  }
  headers.tensors.reserve(counts.tensors);
  for (uint64_t i = 0; i < counts.tensors; ++i) headers.tensors.push_back(read_tensor(reader));
  std::set<std::string_view> seen;
  for (const TensorHeader& header : headers.tensors) {
    if (!seen.insert(header.tensor.name).second) {
      fail("{}: tensor '{}' stands in the file twice", name, header.tensor.name);
    }
  }
  headers.end = reader.at();
  return headers;
}

uint64_t data_bytes(const TensorHeader& header) {
  const Weight& weight = header.tensor.weight;
  return weight.row_bytes() * static_cast<uint64_t>(weight.rows);
}

/// Whether tensors one behind the other, each padded to a multiple of `alignment`, take the file to its end. Some
/// writers leave the padding behind the last tensor out.
bool fills(const Headers& headers, uint64_t alignment, size_t size) {
  const uint64_t start = padded(headers.end, alignment);
  std::vector<std::pair<uint64_t, uint64_t>> pieces;  // offset and bytes
  for (const TensorHeader& header : headers.tensors) pieces.emplace_back(header.offset, data_bytes(header));
  std::sort(pieces.begin(), pieces.end());
  uint64_t at = 0, end = 0;
  for (const auto& [offset, bytes] : pieces) {
    if (offset != at || bytes > size) return false;
    end = offset + bytes;
    at = padded(end, alignment);
  }
  if (pieces.empty()) return size == headers.end || size == start;
  return size == start + end || size == start + at;
}

/// The tensors with their places in the file.
ScannedGguf place_tensors(Headers headers, const std::byte* data, size_t size, const std::string& name) {
  const uint64_t alignment = headers.gguf.alignment, start = padded(headers.end, alignment);
  auto& tensors = headers.gguf.tensors;
  tensors.reserve(headers.tensors.size());
  for (TensorHeader& header : headers.tensors) {
    if (header.offset % alignment != 0) {
      fail("{}: tensor '{}' begins at offset {}, expected a multiple of {}", name, header.tensor.name, header.offset,
           alignment);
    }
    const uint64_t bytes = data_bytes(header);
    if (start > size || header.offset > size - start || bytes > size - start - header.offset) {
      fail("{}: tensor '{}' needs {} bytes at offset {} of the data, but the file ends at byte {}; is it truncated?",
           name, header.tensor.name, bytes, header.offset, size);
    }
    header.tensor.weight.data = data + start + header.offset;
    tensors.push_back(std::move(header.tensor));
  }
  check_overlap(tensors, name);
  return std::move(headers.gguf);
}

}  // namespace

const char* type_name(const ScannedValue& value) { return gguf_type_name(value.array ? GGUF_TYPE_ARRAY : value.type); }

ScannedGguf scan_gguf(const std::byte* data, size_t size, const std::string& name) {
  Headers headers = read_headers(data, size, name);
  headers.gguf.filled = fills(headers, headers.gguf.alignment, size);
  return place_tensors(std::move(headers), data, size, name);
}

ScannedGguf scan_gguf_part(const std::byte* data, size_t size, const std::string& name, uint64_t first_alignment) {
  Headers headers = read_headers(data, size, name);
  uint64_t& alignment = headers.gguf.alignment;  // the part's own, or the default
  const bool own = headers.gguf.keys.contains(GGUF_KEY_GENERAL_ALIGNMENT);
  if (!own && fills(headers, first_alignment, size)) alignment = first_alignment;
  headers.gguf.filled = fills(headers, alignment, size);
  if (!headers.gguf.filled) {
    fail("{}: {} tensors aligned to {} bytes do not fill the part's {} bytes exactly; is it truncated?", name,
         headers.tensors.size(),
         own || first_alignment == alignment ? std::to_string(alignment)
                                             : fmt::format("{} or {}", first_alignment, alignment),
         size);
  }
  return place_tensors(std::move(headers), data, size, name);
}

}  // namespace tidal
