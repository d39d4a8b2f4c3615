// A model: hyperparameters and weights on a backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace tidal {

struct Model {
  Hyperparameters hp;
  Weight embedding;          // [vocab, width]
  Weight output_norm;        // [width]
  Weight output;             // [vocab, width]; the embedding where the file has no own output matrix
  LayerInputs layer_inputs;  // where layers have inputs of their own
  std::vector<Layer> layers;
  std::string quantisation;             ///< as llama.cpp names it, e.g. "Q4_K - Medium"; "" if the file does not say
  int64_t file_bytes = 0;               ///< size of the file, 0 for random weights
  std::shared_ptr<const void> storage;  ///< keeps the weights' memory alive

  /// Bytes of weights that one decode step reads (a row of the embedding, everything else whole).
  int64_t decode_weight_bytes() const;
};

/// Gives every layer an id of its own, when its weights are what they stay.
void number_layers(Model& model);

/// Bytes of the backend's memory that will be needed beside the weights. Throws Error for what else cannot be had.
using MemoryBeside = std::function<int64_t(const Hyperparameters& hp)>;

/// Maps a GGUF file, checks it, and gives its weights to `backend`, which must outlive the model. Throws Error with the
/// path and what is wrong: damaged file, unsupported architecture, every missing key and tensor, and with the numbers
/// where the weights and what is needed beside them do not fit into the backend's memory.
Model load_model(const std::string& path, Backend& backend, const MemoryBeside& beside = {});

/// Random weights of a given shape, every matrix in what the backend makes of `type`, for benchmarks without a file.
Model random_model(const Hyperparameters& hp, ggml_type type, uint64_t seed, Backend& backend,
                   const MemoryBeside& beside = {});

/// Bytes of such weights, with every matrix in `type`.
int64_t weight_bytes(const Hyperparameters& hp, ggml_type type);

/// Shapes that benchmarks know by name: llama-2-7b, llama-3-8b, ... Throws Error listing the names for any other.
Hyperparameters known_shape(const std::string& name);

}  // namespace tidal
