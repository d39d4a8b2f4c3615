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

  /// Throws Error when it cannot be written, e.g. because the disk is full.
  void write(std::string_view content);

 private:
  /// PATH.PID.part, which becomes `path` when it is written and is gone otherwise.
  class Part {
   public:
    explicit Part(const std::string& path);
    ~Part();
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    void write(std::string_view content);

   private:
    [[noreturn]] void cannot_write() const;

    const std::string& path_;
    std::string part_;
    int file_ = -1;
  };

  std::string path_;
};

}  // namespace tidal
