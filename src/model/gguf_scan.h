// A first pass over a GGUF file that trusts nothing: after it, every count, string and tensor lies inside the file.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backend/weights.h"

namespace tidal {

/// A tensor as its header describes it. At most two dimensions count: [rows, cols]; higher ones fold into rows.
struct ScannedTensor {
  std::string name;
  Weight weight;  ///< data inside the scanned bytes
};

/// Throws Error `name: ...`: bad magic, version or byte order, anything that reaches beyond `size`, unknown value or
/// tensor types, dimensions that overflow, misaligned or overlapping tensors, duplicate names.
std::vector<ScannedTensor> scan_gguf(const std::byte* data, size_t size, const std::string& name);

}  // namespace tidal
