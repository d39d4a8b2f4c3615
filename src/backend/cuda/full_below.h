// Up to which context full attention is the faster one on a GPU.
#pragma once

#include <span>

#include "backend/hyperparameters.h"
#include "backend/policy.h"

namespace tidal::cuda {

/// Backend::full_below() of this backend; needs no device. At most kAlwaysFull.
int full_below(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy, KvType type);

}  // namespace tidal::cuda
