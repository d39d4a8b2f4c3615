// GGUF files: mapped, parsed with ggml's own reader, then checked so that nothing later reads outside the file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/weights.h"

struct gguf_context;

namespace tidal {

/// The metadata and tensors of one GGUF file (version 2 or 3, little-endian).
class GgufFile {
 public:
  /// Throws Error `path: ...` when the file cannot be read or is not a sound GGUF file: every count, size and offset is
  /// checked against the file's size, and tensors must not overlap.
  static GgufFile open(const std::string& path);
  /// The same for bytes in memory, which must outlive the object; `name` stands in messages. For tests and fuzzing.
  static GgufFile parse(const std::byte* data, size_t size, const std::string& name);

  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return static_cast<int64_t>(size_); }

  /// Value of a key; nullopt when it is absent. Throws Error when it has another type, or an integer that does not fit.
  std::optional<std::string> text(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> flag(std::string_view key) const;
  /// Elements of an array key; nullopt when it is absent.
  std::optional<int64_t> array_size(std::string_view key) const;
  /// Integers of an array key (or of a single integer, as one element); nullopt when it is absent.
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;

  /// Tensors by name. A 1-dimensional tensor is one row. `data` points into the mapped file.
  const std::map<std::string, Weight, std::less<>>& tensors() const { return tensors_; }
  /// Keeps the mapped bytes alive; null for parse().
  std::shared_ptr<const void> storage() const { return storage_; }

 private:
  std::string path_;
  size_t size_ = 0;
  std::shared_ptr<gguf_context> gguf_;
  std::map<std::string, Weight, std::less<>> tensors_;
  std::shared_ptr<const void> storage_;
};

}  // namespace tidal
