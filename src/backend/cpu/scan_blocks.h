// The scores of a Scan layer: query heads against the sketches of full blocks.
#pragma once

#include <cstddef>

#include "backend/sketch.h"

namespace tidal {

struct ScanArgs {
  const float* q = nullptr;  ///< [heads, head_dim]
  int heads = 0;             ///< query heads that share the sketches' KV head, >= 1
  SketchLayout layout;
  const std::byte* const* sketches = nullptr;  ///< [blocks]
  int blocks = 0;
  float* scores = nullptr;  ///< of head h, block b and its position p: to scores[h * stride + kBlockTokens * b + p]
  std::ptrdiff_t stride = 0;
};

/// Scores bit for bit as sketch_scores() has them, each sketch read once for all heads.
void scan_blocks(const ScanArgs& args);

}  // namespace tidal
