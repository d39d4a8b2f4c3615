// Whether a backend runs a model: asked before gigabytes are read or made for nothing.
#pragma once

#include <string>

#include "model/model.h"

namespace tidal {

/// Bytes of a matrix, or of a vector where `rows` is 1, in the backend's memory.
int64_t kept_bytes(const Backend& backend, ggml_type type, int64_t rows, int64_t cols);

/// Throws Error unless the backend computes such a model, and with the numbers unless `weights` bytes and what `beside`
/// says fit into its memory. `name` is what needs them.
void check_backend(const Backend& backend, const std::string& name, int64_t weights, const Hyperparameters& hp,
                   const MemoryBeside& beside);

}  // namespace tidal
