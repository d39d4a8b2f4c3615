// Memory of the CPU backend.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/buffer.h"

namespace tidal {

/// Zero-filled pages that take physical memory only when first written. Throws Error naming `what` and the size when
/// they cannot be had.
Buffer allocate_memory(size_t bytes, std::string_view what);

/// Backend::map(): pages of such memory become private pages of a file. False when they are no whole ones, or the
/// system has too many mappings; then the memory holds anything. Throws Error when it cannot be had back.
bool map_memory(std::byte* to, int descriptor, int64_t offset, size_t bytes);

}  // namespace tidal
