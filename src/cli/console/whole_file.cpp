#include "cli/console/whole_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace tidal {

WholeFile::WholeFile(std::string path) : path_(std::move(path)) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path_, ignored);
  if (std::filesystem::is_directory(status)) fail("{}: is a directory, expected a file to write", path_);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    fail("{}: is not a regular file, expected one to write", path_);
  }
  if (std::filesystem::is_symlink(std::filesystem::symlink_status(path_, ignored))) {
    // The file that a link names is replaced, not the link.
    const auto target = std::filesystem::weakly_canonical(path_, ignored);
    if (!ignored) path_ = target;
  }
  // Only to see that it can be: while the work is done nothing lies beside `path` that a kill would leave there.
  { const Part part(path_); }
}

void WholeFile::write(std::string_view content) { Part(path_).write(content); }

WholeFile::Part::Part(const std::string& path) : path_(path), part_(fmt::format("{}.{}.part", path, ::getpid())) {
  file_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) cannot_write();
}

WholeFile::Part::~Part() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(part_.c_str());
}

void WholeFile::Part::write(std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(file_, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) cannot_write();
    content.remove_prefix(static_cast<size_t>(written));
  }
  if (::fsync(file_) != 0 && errno != EINVAL && errno != ENOTSUP) cannot_write();
  if (std::rename(part_.c_str(), path_.c_str()) != 0) cannot_write();
  ::close(std::exchange(file_, -1));
}

void WholeFile::Part::cannot_write() const { fail("{}: cannot be written: {}", path_, std::strerror(errno)); }

}  // namespace tidal
