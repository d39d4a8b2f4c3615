// GGUF files, whole or in parts: mapped, and checked so that nothing later reads outside of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/weights.h"
#include "model/gguf_scan.h"

namespace tidal {

/// The bytes of one file, or of one part of a split one.
struct GgufBytes {
  std::string name;  ///< stands in messages
  const std::byte* data = nullptr;
  size_t size = 0;
};

/// The metadata and tensors of one model (GGUF version 2 or 3, little-endian), in one file or in the parts that
/// llama.cpp's gguf-split and gguf-py write: NAME-00001-of-00003.gguf and so on, the metadata in the first.
class GgufFile {
 public:
  /// Throws Error `path: ...` when a file cannot be read or is not a sound GGUF file: every count, size and offset is
  /// checked against the file's size, and tensors must not overlap. `path` of a split model is its first part; throws
  /// for another one, and for parts that are missing, foreign, double or not filled exactly.
  static GgufFile open(const std::string& path);
  /// The same for bytes in memory, which must outlive the object; all parts, the first one first.
  static GgufFile parse(std::span<const GgufBytes> parts);
  static GgufFile parse(const std::byte* data, size_t size, const std::string& name);

  const std::string& path() const { return path_; }
  /// Of all parts together.
  int64_t file_bytes() const { return file_bytes_; }

  /// Value of a key; nullopt when it is absent. Throws Error when it has another type. As in libllama an integer is a
  /// u32 and a number an f32, nothing else.
  std::optional<std::string> text(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> flag(std::string_view key) const;
  bool is_array(std::string_view key) const;
  /// Elements of an array key; nullopt when it is absent.
  std::optional<int64_t> array_size(std::string_view key) const;
  /// Integers of an array key (u32, i32, or bool as 0 and 1), or of a single u32, as one element; nullopt when it is
  /// absent.
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;

  /// Tensors by name. A 1-dimensional tensor is one row. `data` points into the mapped file.
  const std::map<std::string, Weight, std::less<>>& tensors() const { return tensors_; }
  /// Keeps the mapped bytes alive; null for parse().
  std::shared_ptr<const void> storage() const { return storage_; }

 private:
  /// `part(index, count)`: the bytes of a part behind the first.
  static GgufFile read(const GgufBytes& first, const std::function<GgufBytes(int index, int count)>& part);
  void add(ScannedGguf scanned, const GgufBytes& part);

  const ScannedValue* find(std::string_view key) const;
  /// A single value of this type; null when it is absent.
  const std::byte* single(std::string_view key, gguf_type type, const char* expected) const;

  std::string path_;
  int64_t file_bytes_ = 0;
  std::map<std::string, ScannedValue, std::less<>> keys_;  // of the first part
  std::map<std::string, Weight, std::less<>> tensors_;
  std::map<const std::byte*, std::string> parts_;  // by where their bytes begin
  std::shared_ptr<const void> storage_;
};

}  // namespace tidal
