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
/// Kernels that a decode step launches: those of the graph that a backend of make_backend() made last, 0 where it has
/// made none yet. Throws std::bad_cast for another backend.
int kernels_of_a_step(const Backend& backend);

}  // namespace tidal::cuda
