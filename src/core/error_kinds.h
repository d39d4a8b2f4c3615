// Errors that a caller tells apart.
#pragma once

#include <utility>

#include "core/error.h"

namespace tidal {

/// Of memory that could not be had.
class MemoryError : public Error {
 public:
  using Error::Error;
};

/// What a device reported.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// fail() of such a kind.
template <typename Kind, typename... Args>
[[noreturn]] void fail_as(fmt::format_string<Args...> format, Args&&... args) {
  throw Kind(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tidal
