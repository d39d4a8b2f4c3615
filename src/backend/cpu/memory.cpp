#include "backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include "core/error_kinds.h"

namespace tidal {

Buffer allocate_memory(size_t bytes, std::string_view what) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    fail_as<MemoryError>("out of memory: cannot get {:.1f} MiB for the {}; a shorter context needs less",
                         bytes / 1048576.0, what);
  }
  // Long caches are read in large strides; big pages spare the TLB. Only advice: it may be refused.
  if (bytes >= size_t{4} << 20) madvise(data, bytes, MADV_HUGEPAGE);
  return Buffer(static_cast<std::byte*>(data), bytes, [](std::byte* memory, size_t size) { munmap(memory, size); });
}

bool map_memory(std::byte* to, int descriptor, int64_t offset, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if ((reinterpret_cast<uintptr_t>(to) | static_cast<size_t>(offset) | bytes) % page != 0) return false;
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  if (mmap(to, bytes, kAccess, MAP_PRIVATE | MAP_FIXED, descriptor, offset) != MAP_FAILED) return true;
  // What was there may be gone: the system has a limit to the number of mappings.
  if (mmap(to, bytes, kAccess, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
    fail_as<MemoryError>("out of memory: cannot map {:.1f} MiB of a file", static_cast<double>(bytes) / 1048576.0);
  }
  return false;
}

}  // namespace tidal
