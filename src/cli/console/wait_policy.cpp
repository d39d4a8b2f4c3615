#include "cli/console/wait_policy.h"

#include <sys/auxv.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

namespace tidal {
namespace {

constexpr const char* kVariable = "GOMP_SPINCOUNT";
/// About 10 us: as long as the parallel parts of a decode step lie apart on quiet cores, and a small part of the
/// the milliseconds for which the scheduler leaves a core to another process.
constexpr const char* kSpins = "1000";

}  // namespace

void wait_shortly(char** arguments) {
  if (std::getenv(kVariable) || std::getenv("OMP_WAIT_POLICY")) return;
  // Begun by naming the dynamic loader: /proc/self/exe is the loader then, which would not know these arguments.
  if (getauxval(AT_BASE) == 0) return;
  std::array<char, 4096> path{};
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0 || static_cast<size_t>(length) >= path.size()) return;
  if (setenv(kVariable, kSpins, 1) != 0) return;
  execv(path.data(), arguments);
  unsetenv(kVariable);
}

}  // namespace tidal
