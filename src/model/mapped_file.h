// A file's bytes, mapped read-only.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace tidal {

struct MappedFile {
  std::shared_ptr<const void> storage;  ///< unmaps and closes when the last owner goes
  const std::byte* data = nullptr;
  size_t size = 0;
  int descriptor = -1;
};

/// Throws Error `path: ...` when the path is not a readable, regular, non-empty file. Never blocks on a FIFO.
/// `expected` stands in the message.
MappedFile map_file(const std::string& path, const char* expected = "a GGUF file");

}  // namespace tidal
