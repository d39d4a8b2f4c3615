// From a GGUF file's keys and tensors to hyperparameters and weights.
#pragma once

#include "model/gguf.h"
#include "model/model.h"

namespace tidal {

/// Hyperparameters of a supported architecture (llama, qwen2, qwen3). Throws Error: an unsupported architecture by
/// name, all missing keys in one message, values that contradict each other.
Hyperparameters read_hyperparameters(const GgufFile& file);

/// Weights still in the mapped file, shapes checked against `hp`. Throws Error listing every tensor that is missing or
/// has another shape.
Model read_weights(const GgufFile& file, const Hyperparameters& hp);

}  // namespace tidal
