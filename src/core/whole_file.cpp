#include "core/whole_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace tidal {

PartFile::PartFile(std::string path, unsigned mode)
    : path_(std::move(path)), part_(fmt::format("{}.{}.part", path_, ::getpid())) {
  ::unlink(part_.c_str());  // of a process that was killed and had the same number
  file_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (file_ < 0) cannot_write();
}

PartFile::~PartFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(part_.c_str());
}

void PartFile::write(const void* data, size_t bytes) {
  write_all(data, bytes, bytes_);
  bytes_ += static_cast<int64_t>(bytes);
}

void PartFile::rewrite(int64_t offset, const void* data, size_t bytes) { write_all(data, bytes, offset); }

void PartFile::write_all(const void* data, size_t bytes, int64_t offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(file_, from, bytes, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) cannot_write();
    from += written;
    offset += written;
    bytes -= static_cast<size_t>(written);
  }
}

void PartFile::finish(bool durable) {
  if (durable && ::fsync(file_) != 0 && errno != EINVAL && errno != ENOTSUP) cannot_write();
  if (std::rename(part_.c_str(), path_.c_str()) != 0) cannot_write();
  ::close(std::exchange(file_, -1));
}

void PartFile::cannot_write() const { fail("{}: cannot be written: {}", path_, std::strerror(errno)); }

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
  { const PartFile part(path_, 0666); }
}

void WholeFile::write(std::string_view content) {
  PartFile part(path_, 0666);
  part.write(content.data(), content.size());
  part.finish(true);
}

}  // namespace tidal
