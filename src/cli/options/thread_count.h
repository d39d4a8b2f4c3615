// How many threads a command uses.
#pragma once

#include <algorithm>
#include <optional>
#include <thread>

#include "core/error.h"

namespace tidal {

/// The number given, or else one thread for every processor that the process may use. Throws Error for a number out of
/// range.
inline int thread_count(std::optional<int> given) {
  constexpr int kMost = 512;
  if (given && (*given < 1 || *given > kMost)) fail("--threads: {} given, expected 1 to {}", *given, kMost);
  return given.value_or(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMost));
}

}  // namespace tidal
