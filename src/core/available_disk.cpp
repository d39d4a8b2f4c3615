#include "core/available_disk.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>

namespace tidal {

int64_t available_disk(const std::string& directory) {
  struct statvfs room = {};
  if (statvfs(directory.c_str(), &room) != 0) return std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(room.f_bavail) * static_cast<int64_t>(room.f_frsize);
}

std::string directory_problem(const std::string& directory) {
  struct stat found = {};
  if (stat(directory.c_str(), &found) != 0) return errno == ENOENT ? "there is no such folder" : std::strerror(errno);
  if (!S_ISDIR(found.st_mode)) return "is a file, expected a folder";
  if (access(directory.c_str(), W_OK | X_OK) != 0) {
    return std::string("no file can be made there: ") + std::strerror(errno);
  }
  return "";
}

}  // namespace tidal
