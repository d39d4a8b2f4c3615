// Rows of an 8-bit cache as vectors of numbers.
#pragma once

#include "backend/kv_row.h"

namespace tidal {

/// Elements of a row of KvType::Q8, exactly: [head_dim] of its key, or of its value.
void read_q8(const KvRowLayout& layout, const std::byte* row, bool value, float* to);
/// The same, rounded to bf16.
void read_q8(const KvRowLayout& layout, const std::byte* row, bool value, Bf16* to);

}  // namespace tidal
