// Which models the CUDA backend computes, and when two of them are the same to it.
#pragma once

#include <string>

#include "backend/hyperparameters.h"

namespace tidal::cuda {

/// Backend::unsupported(), on the current device.
std::string unsupported(const Hyperparameters& hp);

/// Whether all is equal that launches depend on beside the batch.
bool same_shape(const Hyperparameters& a, const Hyperparameters& b);

}  // namespace tidal::cuda
