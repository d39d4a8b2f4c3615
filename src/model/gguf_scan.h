// A first pass over a GGUF file that trusts nothing: after it, every count, string and tensor lies inside the file.
#pragma once

#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/weights.h"

namespace tidal {

/// The value of a key, still in the scanned bytes.
struct ScannedValue {
  gguf_type type = GGUF_TYPE_COUNT;  ///< of the value, or of an array's elements
  bool array = false;
  uint64_t count = 1;               ///< elements of an array
  const std::byte* data = nullptr;  ///< not aligned; a string is its length (u64) and its bytes
};

/// As ggml names it: "u32", "str", "arr" for any array.
const char* type_name(const ScannedValue& value);

/// A tensor as its header describes it. At most two dimensions count: [rows, cols]; higher ones fold into rows.
struct ScannedTensor {
  std::string name;
  Weight weight;  ///< data inside the scanned bytes
};

struct ScannedGguf {
  std::map<std::string, ScannedValue, std::less<>> keys;
  std::vector<ScannedTensor> tensors;
  uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
  bool filled = false;  ///< headers, tensors and padding take the file to its end, exactly
};

/// Throws Error `name: ...`: bad magic, version or byte order, anything that reaches beyond `size`, unknown value or
/// tensor types, dimensions that overflow, misaligned or overlapping tensors, duplicate names.
ScannedGguf scan_gguf(const std::byte* data, size_t size, const std::string& name);

/// The same for a part of a split file that is not the first. `general.alignment` may stand in the first part alone and
/// hold for all, as gguf-py writes it, or hold for that part alone, as llama.cpp does: the right one of the two is the
/// one by which header, tensors and padding fill the part exactly. Throws Error when neither does.
ScannedGguf scan_gguf_part(const std::byte* data, size_t size, const std::string& name, uint64_t first_alignment);

}  // namespace tidal
