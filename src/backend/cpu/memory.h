// Memory of the CPU backend.
#pragma once

#include <string_view>

#include "core/buffer.h"

namespace tidal {

/// Zero-filled pages that take physical memory only when first written. Throws Error naming `what` and the size when
/// they cannot be had.
Buffer allocate_memory(size_t bytes, std::string_view what);

}  // namespace tidal
