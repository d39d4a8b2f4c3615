// The CUDA backend, for one NVIDIA GPU.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace tidal::cuda {

/// Whether make_backend() would find a device that it can use.
bool has_device();
/// How it works; the results are the same, but for the rounding of weights to bf16.
struct Options {
  bool graphs = true;     ///< passes of decode rows alone are run as CUDA graphs
  bool quantised = true;  ///< weights stay quantised where they can; else all matrices become bf16
  bool clusters = true;   ///< positions are selected by clusters of blocks where the device has them, and scored with
                          ///< the shared memory of devices that do
};
/// Throws Error when there is no device that it can use.
std::unique_ptr<Backend> make_backend(const Options& options = {});
/// Kernels that a decode step launches: those of the graph that a backend of make_backend() made last, 0 where it has
/// made none yet. Throws std::bad_cast for another backend.
int kernels_of_a_step(const Backend& backend);
/// Graphs that it has made until now. Throws likewise.
int captured_steps(const Backend& backend);

}  // namespace tidal::cuda
