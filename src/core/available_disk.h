// How much room a folder's disk has left.
#pragma once

#include <cstdint>
#include <string>

namespace tidal {

/// Bytes that this user can still write there; a very large number where the system does not say.
int64_t available_disk(const std::string& directory);

/// Why no file can be made in `directory`, in a few words; "" where one can.
std::string directory_problem(const std::string& directory);

}  // namespace tidal
