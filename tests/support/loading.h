// What the tests of the loader share: the whole way from bytes to weights, and the message of a refusal.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "core/error.h"
#include "model/load.h"
#include "support/gguf_writer.h"

namespace tidal::test {

/// The weights of a file in memory, read as load_model() reads them; `bytes` must outlive them.
inline Model load_bytes(const Bytes& bytes, size_t size) {
  const GgufFile file = GgufFile::parse(bytes.data(), size, "test.gguf");
  return read_weights(file, read_hyperparameters(file));
}

/// The message with which bytes are refused, "" when they are taken.
inline std::string refusal(const Bytes& bytes, size_t size) {
  try {
    load_bytes(bytes, size);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}
inline std::string refusal(const Bytes& bytes) { return refusal(bytes, bytes.size()); }
inline std::string refusal(const GgufWriter& writer) { return refusal(writer.bytes()); }

inline Hyperparameters hyperparameters(const GgufWriter& writer) {
  const Bytes bytes = writer.bytes();
  return load_bytes(bytes, bytes.size()).hp;
}

/// A folder that anyone may read and that goes with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "tidal-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error(name + ": cannot be made");
    path_ = name;
    std::filesystem::permissions(path_, std::filesystem::perms(0755));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace tidal::test
