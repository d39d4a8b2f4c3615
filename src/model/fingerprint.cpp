#include "model/fingerprint.h"

#include <algorithm>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/mapped_file.h"

namespace tidal {
namespace {

constexpr size_t kBeginning = size_t{1} << 20;
constexpr size_t kSample = 4096;
constexpr size_t kSamples = 256;

}  // namespace

uint64_t model_fingerprint(const std::string& path) {
  const MappedFile file = map_file(path);
  const size_t size = file.size;
  uint64_t hash = XXH3_64bits_withSeed(file.data, std::min(size, kBeginning), size);
  for (size_t i = 1; i <= kSamples && size > kSample; ++i) {
    hash = XXH3_64bits_withSeed(file.data + (size - kSample) / kSamples * i, kSample, hash);
  }
  return hash;
}

}  // namespace tidal
