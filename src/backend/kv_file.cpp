#include "backend/kv_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/available_disk.h"
#include "core/error.h"

namespace tidal {
namespace {

constexpr double kGibi = 1 << 30;

/// In `directory`, without a name. Throws Error.
int make_file(const std::string& directory) {
  std::string path = directory + "/tidal-kv-XXXXXX";
  const int descriptor = mkostemp(path.data(), O_CLOEXEC);
  if (descriptor < 0) fail("{}: no file can be made there: {}", directory, std::strerror(errno));
  unlink(path.c_str());
  return descriptor;
}

/// Returns the error's number, 0 for none.
int take_room(int descriptor, size_t bytes) {
  for (;;) {
    // Not posix_fallocate(), which writes to every page where the file system cannot do it.
    if (fallocate(descriptor, 0, 0, static_cast<off_t>(bytes)) == 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace

void check_disk(const std::string& directory, int64_t bytes, std::string_view what) {
  const int64_t available = available_disk(directory);
  if (bytes <= available) return;
  fail("{}: the {} needs {:.2f} GiB on disk, {:.2f} GiB are free there", directory, what,
       static_cast<double>(bytes) / kGibi, static_cast<double>(available) / kGibi);
}

KvFile::KvFile(KvRoom given, std::string_view what)
    : KvMemory(std::move(given)), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
  for (const size_t slot : room().slot_bytes) {
    first_.push_back(bytes_);
    bytes_ += (slot * static_cast<size_t>(room().slots) + page_ - 1) / page_ * page_;
  }
  if (bytes_ == 0) return;
  const std::string& directory = room().directory;
  file_.number = make_file(directory);
  check_disk(directory, static_cast<int64_t>(bytes_), what);
  const int error = take_room(file_.number, bytes_);
  void* mapped = MAP_FAILED;
  if (error == 0) mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_.number, 0);
  if (mapped == MAP_FAILED) {
    const std::string reason = std::strerror(error != 0 ? error : errno);
    fail("{}: {:.2f} GiB for the {} cannot be {}: {}", directory, static_cast<double>(bytes_) / kGibi, what,
         error != 0 ? "had on its file system" : "mapped", reason);
  }
  data_ = static_cast<std::byte*>(mapped);
  // A selected row is not followed by the next one: reading ahead would read for nothing, megabytes a row on some
  // disks.
  madvise(data_, bytes_, MADV_RANDOM);
}

KvFile::Descriptor::~Descriptor() {
  if (number >= 0) close(number);
}

KvFile::~KvFile() {
  if (data_) munmap(data_, bytes_);
}

void KvFile::ask_for(const std::byte* from, size_t bytes) const {
  constexpr size_t kMost = 64;  // pages at a time
  std::array<unsigned char, kMost> there;
  const auto first = static_cast<size_t>(from - data_);
  for (size_t at = first / page_ * page_; at < first + bytes; at += kMost * page_) {
    const size_t pages = std::min(kMost, (first + bytes - at + page_ - 1) / page_);
    if (mincore(data_ + at, pages * page_, there.data()) != 0) there.fill(0);
    const bool all = std::all_of(there.begin(), there.begin() + static_cast<ptrdiff_t>(pages),
                                 [](unsigned char flags) { return (flags & 1) != 0; });
    if (all) continue;
    missed_.fetch_add(1, std::memory_order_relaxed);
    madvise(data_ + at, pages * page_, MADV_WILLNEED);
  }
}

}  // namespace tidal
