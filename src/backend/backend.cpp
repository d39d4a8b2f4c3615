#include "backend/backend.h"

#include "core/error.h"

namespace tidal {

std::unique_ptr<Backend> make_backend(std::string_view name, int threads) {
  if (name == "cpu") return make_cpu_backend(threads);
  if (name == "reference") return make_reference_backend();
  fail("backend: '{}' is not known, expected cpu or reference", name);
}

}  // namespace tidal
