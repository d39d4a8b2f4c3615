// What a benchmark says about the machine and the process.
#pragma once

#include <cstdint>
#include <string>

namespace tidal {

/// The processor's name, "" where the system does not tell.
std::string processor_name();
/// Most bytes of memory that the process has had at once since its start, or since reset_peak_memory(); pages of mapped
/// files included. 0 where the system does not tell.
int64_t peak_memory();
/// Returns false, having changed nothing, where the system does not allow it.
bool reset_peak_memory();

}  // namespace tidal
