// From a GGUF file's keys and tensors to hyperparameters and weights.
#pragma once

#include "model/gguf.h"
#include "model/model.h"

namespace tidal {

/// Hyperparameters of a supported architecture (family.h). Throws Error: an unsupported architecture by
/// name, all missing keys in one message, values that contradict each other.
Hyperparameters read_hyperparameters(const GgufFile& file);

/// Weights still in the mapped file, shapes checked against `hp`. Throws Error listing every tensor that is missing,
/// has another shape or would be left out: all of a file counts but the scales of activations (*.input_scale) and, in
/// qwen3 files, a reranker's head (cls.output.weight).
Model read_weights(const GgufFile& file, const Hyperparameters& hp);

}  // namespace tidal
