#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace tidal {

MappedFile map_file(const std::string& path, const char* expected) {
  // O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) fail("{}: cannot be opened: {}", path, std::strerror(errno));
  MappedFile file;
  file.descriptor = descriptor;
  file.storage = std::shared_ptr<const void>(nullptr, [descriptor](const void*) { ::close(descriptor); });

  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("{}: cannot be read: {}", path, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) fail("{}: is a directory, expected {}", path, expected);
  if (!S_ISREG(status.st_mode)) fail("{}: is not a regular file, expected {}", path, expected);
  if (status.st_size == 0) fail("{}: is empty, expected {}", path, expected);

  const size_t size = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) fail("{}: cannot be mapped: {}", path, std::strerror(errno));
  file.data = static_cast<const std::byte*>(data);
  file.size = size;
  file.storage = std::shared_ptr<const void>(
      data, [size, open = file.storage](const void* start) { ::munmap(const_cast<void*>(start), size); });
  return file;
}

}  // namespace tidal
