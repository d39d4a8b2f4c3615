// libFuzzer target of the loader: whatever the bytes, it reads them to the end or throws tidal::Error.
#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "core/error.h"
#include "model/load.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // millions of refusals are nothing to report
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = tidal::GgufFile::parse(reinterpret_cast<const std::byte*>(data), size, "fuzz");
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
