// How much memory this machine has left.
#pragma once

#include <cstdint>

namespace tidal {

/// Bytes that programs can still have without making the system write others' to disk; a very large number where the
/// system does not say.
int64_t available_memory();

}  // namespace tidal
