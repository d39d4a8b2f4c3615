// Keys of files whose layers are of two kinds, those with a window and those that read the whole context (Gemma 4).
#pragma once

#include "model/gguf.h"
#include "model/keys.h"

namespace tidal {

struct Hyperparameters;

/// The hidden elements of each layer's MLP: Hyperparameters::ffns where they differ. Returns the most.
int read_ffns(Keys& keys, int layers, Hyperparameters& hp);
/// Notes which of the keys that such files must have are missing.
void require_kinds(const GgufFile& file, Keys& keys, const Hyperparameters& hp);
/// Of a model whose windows are known, with all those keys: heads and their sizes of both kinds, which layers share K
/// and V, the layers' own inputs, the cap of logits. Throws Error where layers of one kind differ.
void read_kinds(const GgufFile& file, Keys& keys, Hyperparameters& hp);

}  // namespace tidal
