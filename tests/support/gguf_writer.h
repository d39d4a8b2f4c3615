// Writes GGUF files byte by byte, sound ones and ones that lie, for the tests of the loader.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tidal::test {

using Bytes = std::vector<std::byte>;

void append_bytes(Bytes& bytes, const void* start, size_t count);

template <typename T>
void append(Bytes& bytes, const T& value) {
  append_bytes(bytes, &value, sizeof(value));
}

/// A GGUF file in the making. Nothing is checked: what a test asks for is what is written.
class GgufWriter {
 public:
  struct Tensor {
    std::string name;
    ggml_type type;
    std::vector<uint64_t> sizes;     ///< fastest first, as in the file
    Bytes data;                      ///< as long as type and sizes ask, or what a test puts there
    std::optional<uint64_t> offset;  ///< in the place of the true one
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count, key_count;  ///< in the place of the true ones
  std::optional<size_t> padding;                    ///< in the place of what the key general.alignment asks for

  /// Sets a key, or sets it anew.
  GgufWriter& set(const std::string& key, bool value);
  GgufWriter& set(const std::string& key, uint16_t value);
  GgufWriter& set(const std::string& key, uint32_t value);
  GgufWriter& set(const std::string& key, int32_t value);
  GgufWriter& set(const std::string& key, uint64_t value);
  GgufWriter& set(const std::string& key, float value);
  GgufWriter& set(const std::string& key, double value);
  GgufWriter& set(const std::string& key, const char* value);
  GgufWriter& set(const std::string& key, const std::vector<uint32_t>& values);
  GgufWriter& set(const std::string& key, const std::vector<std::string>& values);
  /// A value of any type in the file's own bytes.
  GgufWriter& set_raw(const std::string& key, uint32_t type, const Bytes& value);
  /// Adds the key even if it is there already.
  GgufWriter& repeat(const std::string& key);
  GgufWriter& erase(const std::string& key);

  /// Adds a tensor of zeros behind the others, or replaces the one of that name. `sizes`: fastest first.
  Tensor& add(const std::string& name, ggml_type type, const std::vector<uint64_t>& sizes);
  /// The same with these floats.
  Tensor& add(const std::string& name, const std::vector<float>& values, const std::vector<uint64_t>& sizes);
  Tensor& tensor(std::string_view name);
  bool has_tensor(std::string_view name) const;
  void erase_tensor(std::string_view name);

  /// The same model in `count` parts of about as many tensors, with all keys in the first. What pads the others: 32
  /// bytes as llama.cpp's gguf-split has it, or as gguf-py (`padded_alike`) the alignment that the first part names.
  std::vector<GgufWriter> split(int count, bool padded_alike = false) const;

  Bytes bytes() const;
  /// Bytes in front of the tensors' data, padding included.
  size_t header_bytes() const;
  /// Writes bytes() to a file.
  void save(const std::string& path) const;

 private:
  struct Key {
    std::string name;
    uint32_t type;
    Bytes value;
  };
  Bytes header() const;
  size_t alignment() const;

  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
};

/// The sizes of small_model().
struct SmallShape {
  uint64_t layers = 2, width = 64, heads = 4, kv_heads = 2, ffn = 96, vocab = 32;
  /// Of a mixture of experts, in families that are one; in llama files only where `experts` is set.
  uint64_t experts = 0, experts_used = 2, expert_ffn = 32, shared_ffn = 64;
  uint64_t head_size = 0;  ///< 0: width / heads, which files need not say

  /// Of recurrent layers, which all are but every `interval`-th, in families that have them.
  uint64_t interval = 2, delta_dim = 16, key_heads = 2, value_heads = 4, taps = 4;

  uint64_t head_dim() const { return head_size > 0 ? head_size : width / heads; }
};

/// A complete model with small random weights and a context of 128, of any architecture that is supported. Files that
/// are mixtures of experts have five, unless `shape` says so.
GgufWriter small_model(const std::string& architecture, const SmallShape& shape = {});

}  // namespace tidal::test
