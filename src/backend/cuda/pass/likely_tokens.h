// The most likely tokens, chosen where the logits are.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/likely_tokens.h"

namespace tidal::cuda {

struct LikelyParams {
  const float* logits = nullptr;  ///< [rows, vocab]
  int rows = 0, vocab = 0;
  int count = 0;               ///< 1 to min(vocab, kMostLikely)
  uint64_t* keys = nullptr;    ///< likely_workspace() bytes
  LikelyToken* out = nullptr;  ///< [rows, count], in the order of select_likely()
};
/// Every row as select_likely() has it.
void launch_likely(const LikelyParams& params, cudaStream_t stream);
/// Bytes of LikelyParams::keys for up to so many rows, with any count.
size_t likely_workspace(int rows, int vocab);

}  // namespace tidal::cuda
