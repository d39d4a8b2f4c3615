// In the place of CUDA in a build without it.
#include "attention/attention.h"

namespace tidal {

bool has_cuda_attention() { return false; }

std::unique_ptr<tidal_attention> make_cuda_attention(const tidal_attention_options&) {
  throw AttentionError(TIDAL_ATTENTION_UNSUPPORTED, "device: this library was built without CUDA, expected the CPU");
}

}  // namespace tidal
