// What files of hybrids say of their recurrent layers, and of the rotation in the others.
#pragma once

#include <string>

#include "backend/hyperparameters.h"
#include "model/family.h"
#include "model/keys.h"

namespace tidal {

/// The sizes of recurrent layers, and which layers are. `all`: layers of the file. Throws Error for sizes that do not
/// fit each other. Nothing for other families.
void read_delta(const GgufFile& file, Keys& keys, const Family& family, int all, Hyperparameters& hp);

/// Pairs of q and k are dealt to the axes of pictures, which take turns pair by pair as long as each has some left
/// (interleaved M-RoPE). In text all axes but the last say the same, so that nothing else changes; throws Error where a
/// pair goes by the last.
void check_mixed_sections(const GgufFile& file, const std::string& architecture, int dims);

}  // namespace tidal
