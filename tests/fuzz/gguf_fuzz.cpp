// libFuzzer target of the loader: whatever the bytes, it reads them to the end or throws tidal::Error.
#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "fuzz/next_part.h"
#include "model/load.h"

namespace {

/// The input's parts, each in memory of its own size, so that a read behind one is seen.
std::vector<std::vector<std::byte>> parts_of(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::vector<std::byte>> parts;
  for (;;) {
    const size_t end = rest.find(tidal::test::kNextPart);
    const std::string_view part = rest.substr(0, end);
    const auto* bytes = reinterpret_cast<const std::byte*>(part.data());
    parts.emplace_back(bytes, bytes + part.size());
    if (end == std::string_view::npos) return parts;
    rest.remove_prefix(end + tidal::test::kNextPart.size());
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // millions of refusals are nothing to report
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto parts = parts_of(data, size);
    std::vector<tidal::GgufBytes> bytes;
    for (const auto& part : parts) bytes.push_back({"fuzz", part.data(), part.size()});
    const auto file = tidal::GgufFile::parse(bytes);
    const tidal::Model model = tidal::read_weights(file, tidal::read_hyperparameters(file));
    // What the loader let through must be readable to its last byte.
    volatile unsigned sum = 0;
    for (const auto& [name, weight] : file.tensors()) {
      if (weight.bytes() > 0) sum = sum + static_cast<unsigned>(weight.data[weight.bytes() - 1]);
    }
  } catch (const tidal::Error&) {
  }
  return 0;
}
