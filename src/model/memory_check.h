// Whether a model fits into a backend's memory: asked before gigabytes are read or made for nothing.
#pragma once

#include <string>

#include "model/model.h"

namespace tidal {

/// Bytes of a matrix, or of a vector where `rows` is 1, in the backend's memory.
int64_t kept_bytes(const Backend& backend, ggml_type type, int64_t rows, int64_t cols);

/// Throws Error with the numbers unless `weights` bytes and what `beside` says fit. `name` is what needs them.
void check_memory(const Backend& backend, const std::string& name, int64_t weights, const Hyperparameters& hp,
                  const MemoryBeside& beside);

}  // namespace tidal
