// The scores of a Scan layer: query heads against the sketches of full blocks.
#pragma once

#include <algorithm>
#include <cstddef>

#include "backend/sketch.h"

namespace tidal {

struct ScanArgs {
  const float* q = nullptr;  ///< [heads, head_dim]
  int heads = 0;             ///< query heads that share the sketches' KV head, >= 1
  SketchLayout layout;
  const std::byte* const* sketches = nullptr;  ///< [blocks + blocks_after]
  int blocks = 0;
  int blocks_after = 0;     ///< whose scores are not wanted yet, but soon: they may be asked of memory
  float* scores = nullptr;  ///< of head h, block b and its position p: to scores[h * stride + kBlockTokens * b + p]
  std::ptrdiff_t stride = 0;
};

/// What makes of scores the terms of a softmax, 2^(score * scale - reference).
struct ScanTerms {
  float scale = 1;
  const float* reference = nullptr;  ///< [heads]
  float* sum = nullptr;              ///< [heads], receives the sums of the terms
};

/// Calls body(part, its first head) for so many heads at a time at most.
template <typename Body>
void for_each_part(const ScanArgs& args, int most_heads, Body&& body) {
  ScanArgs part = args;
  for (int first = 0; first < args.heads; first += part.heads) {
    part.heads = std::min(most_heads, args.heads - first);
    part.q = args.q + first * args.layout.head_dim;
    part.scores = args.scores + first * args.stride;
    body(part, first);
  }
}

/// Scores bit for bit as sketch_scores() has them (those that are no number in any pattern), each sketch read once for
/// up to 8 heads. Takes the fastest of those below that this processor has.
void scan_blocks(const ScanArgs& args);

/// Terms instead of scores, to 1e-6 and 2^-23 of score * scale and of its reference; 0 below 2^-125. The sum is NaN or
/// infinite when a term is.
void scan_terms(const ScanArgs& args, const ScanTerms& terms);

/// By plain loops, on any processor.
void scan_blocks_plain(const ScanArgs& args);
/// By integer dot products of AVX512-VNNI: terms where `terms` is set. Returns false, having done nothing, where the
/// processor has none.
bool scan_blocks_vnni(const ScanArgs& args, const ScanTerms* terms);
/// By products of bytes in 16 bits of AVX2; the same.
bool scan_blocks_avx2(const ScanArgs& args);
/// Whether this processor has either.
bool has_fast_scan();

}  // namespace tidal
