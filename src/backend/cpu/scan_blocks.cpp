#include "backend/cpu/scan_blocks.h"

#include "backend/cpu/vector_ops.h"

namespace tidal {

bool has_fast_scan() {
  const ScanArgs nothing;
  return scan_blocks_vnni(nothing, nullptr) || scan_blocks_avx2(nothing);
}

void scan_blocks(const ScanArgs& args) {
  if (!scan_blocks_vnni(args, nullptr) && !scan_blocks_avx2(args)) scan_blocks_plain(args);
}

void scan_terms(const ScanArgs& args, const ScanTerms& terms) {
  if (scan_blocks_vnni(args, &terms)) return;
  scan_blocks(args);
  for (int h = 0; h < args.heads; ++h) {
    terms.sum[h] =
        softmax_terms(args.scores + h * args.stride, args.blocks * kBlockTokens, terms.scale, terms.reference[h]);
  }
}

void scan_blocks_plain(const ScanArgs& args) {
  for (int b = 0; b < args.blocks; ++b) {
    for (int h = 0; h < args.heads; ++h) {
      sketch_scores(args.layout, args.q + h * args.layout.head_dim, args.sketches[b],
                    args.scores + h * args.stride + std::ptrdiff_t{kBlockTokens} * b);
    }
  }
}

}  // namespace tidal
