// What tells one model's file from another's.
#pragma once

#include <cstdint>
#include <string>

namespace tidal {

/// A hash of the file's beginning (keys, vocabulary, list of tensors), of its size, and of samples of its tensors all
/// over it: different for any two models that were trained apart, and read in a moment. Of a split model: of its first
/// part. Throws Error when the file cannot be read.
uint64_t model_fingerprint(const std::string& path);

}  // namespace tidal
