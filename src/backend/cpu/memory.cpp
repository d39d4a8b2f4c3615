#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include "core/error.h"

namespace tidal {

Buffer allocate_memory(size_t bytes, std::string_view what) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    fail("out of memory: cannot get {:.1f} MiB for the {}; a shorter context needs less", bytes / 1048576.0, what);
  }
  // Long caches are read in large strides; big pages spare the TLB. Only advice: it may be refused.
  if (bytes >= size_t{4} << 20) madvise(data, bytes, MADV_HUGEPAGE);
  return Buffer(static_cast<std::byte*>(data), bytes, [](std::byte* memory, size_t size) { munmap(memory, size); });
}

}  // namespace tidal
