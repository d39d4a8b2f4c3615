// The CUDA backend, for one NVIDIA GPU.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace tidal::cuda {

/// Whether make_backend() would find a device that it can use.
bool has_device();
/// Throws Error when there is no device that it can use. `graphs`: whether passes of decode rows alone are run as CUDA
/// graphs; the results are the same.
std::unique_ptr<Backend> make_backend(bool graphs = true);

}  // namespace tidal::cuda
