// A file that is written whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace tidal {

/// Takes the place of `path` when write() succeeds; until then what is there stays as it is.
class WholeFile {
 public:
  /// Throws Error when no file can be written there, before any work was done for it.
  explicit WholeFile(std::string path);
  ~WholeFile();
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  /// Once. Throws Error when the disk is full.
  void write(std::string_view content);

 private:
  [[noreturn]] void cannot_write() const;

  std::string path_, part_;
  int file_ = -1;
};

}  // namespace tidal
