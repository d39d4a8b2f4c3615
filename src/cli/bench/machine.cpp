#include "cli/bench/machine.h"

#include <fstream>

namespace tidal {
namespace {

// What follows `name` and a colon in a file of such lines.
std::string field(const char* path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size(), name) != 0) continue;
    const size_t value = line.find_first_not_of(" \t", line.find(':') + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

}  // namespace

std::string processor_name() { return field("/proc/cpuinfo", "model name"); }

int64_t peak_memory() {
  const std::string words = field("/proc/self/status", "VmHWM:");  // "12345 kB"
  return words.empty() ? 0 : std::stoll(words) * 1024;
}

bool reset_peak_memory() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;  // proc(5): resets the peak resident set size
  return file.good();
}

}  // namespace tidal
