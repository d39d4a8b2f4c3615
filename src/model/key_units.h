// The units that a cache in 8 bits keeps keys in.
#pragma once

namespace tidal {

struct Model;

/// Gives every layer with K and V, its own or another one's, its key_units, by weights that are in host memory. The
/// memory is the model's (Model::storage).
void set_key_units(Model& model);

}  // namespace tidal
