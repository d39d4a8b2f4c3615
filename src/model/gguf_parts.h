// The parts of a split GGUF file: what they say of themselves, and what they are called.
#pragma once

#include <cstdint>
#include <string>

#include "model/gguf_scan.h"

namespace tidal {

/// The keys `split.*` of one part. A whole file is part 0 of 1.
struct Split {
  int index = 0;        ///< split.no, from 0
  int count = 1;        ///< split.count
  int64_t tensors = 0;  ///< split.tensors.count, of all parts together
};

/// Throws Error `name: ...` for keys of another type than llama.cpp's (u16, u16, i32), keys that are missing, and a
/// part beyond their number.
Split read_split(const ScannedGguf& scanned, const std::string& name);

/// Throws Error unless it is the first. `filled`: ScannedGguf's; of several parts each must be.
void check_first_part(const Split& split, bool filled, const std::string& path);
/// Throws Error unless it is part `index` of the same model as the first, whose keys are `first`.
void check_part(const Split& split, const Split& first, int index, const std::string& path,
                const std::string& first_path);

/// Where part `index` of `count` lies: PREFIX-00002-of-00003.gguf for index 1 beside PREFIX-00001-of-00003.gguf. Throws
/// Error when the first part's path does not end like that.
std::string part_path(const std::string& first_path, int index, int count);
/// Throws Error that lists the parts of the model with this first part that are not there.
void check_parts_exist(const std::string& first_path, int count);

}  // namespace tidal
