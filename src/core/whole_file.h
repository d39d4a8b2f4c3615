// Files that are there whole or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tidal {

/// A file in the making, PATH.PID.part, which becomes `path` by finish() and is gone otherwise.
class PartFile {
 public:
  /// `mode`: who may read and write it, as open()'s. Throws Error when it cannot be made.
  PartFile(std::string path, unsigned mode);
  ~PartFile();
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  /// At its end. Throws Error when it cannot be written, e.g. because the disk is full.
  void write(const void* data, size_t bytes);
  /// Over what was written there.
  void rewrite(int64_t offset, const void* data, size_t bytes);
  int64_t bytes() const { return bytes_; }
  /// Puts it in its place. `durable`: once the disk has it, so that a power cut leaves the old file or the new one;
  /// else it may leave a torn one.
  void finish(bool durable);

 private:
  void write_all(const void* data, size_t bytes, int64_t offset);
  [[noreturn]] void cannot_write() const;

  std::string path_, part_;
  int file_ = -1;
  int64_t bytes_ = 0;
};

/// Takes the place of `path` when write() succeeds; until then what is there stays as it is.
class WholeFile {
 public:
  /// Throws Error when no file can be written there, before any work was done for it.
  explicit WholeFile(std::string path);

  /// Throws Error when it cannot be written, e.g. because the disk is full.
  void write(std::string_view content);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tidal
