// How the kernels of decode attention deal out query heads, and what they know of a softmax.
#pragma once

namespace tidal::cuda {

/// Query heads that one CTA takes: the columns of an mma tile.
inline constexpr int kTileHeads = 8;
/// Most splits of one row and head: bounds the memory for their weights in the merge.
inline constexpr int kMaxSplits = 128;
/// log2(e), for powers of two in place of e.
inline constexpr float kLog2e = 1.44269504f;

/// Maximum raw score of a head and the sum of exp((score - maximum) / sqrt(head_dim)), over a part or all of a context.
struct SoftmaxPart {
  float maximum;
  float sum;
};

/// How query heads are dealt to CTAs: sets of `set` heads that share their positions and KV head, each in tiles of
/// kTileHeads.
struct HeadTiles {
  int heads;     ///< query heads
  int kv_heads;  ///< KV heads
  int set;       ///< heads / kv_heads, or 1 with Scope::Head
  int per_set;   ///< tiles

  HeadTiles(int heads, int kv_heads, int set)
      : heads(heads), kv_heads(kv_heads), set(set), per_set((set + kTileHeads - 1) / kTileHeads) {}
  int tiles() const { return heads / set * per_set; }
};

}  // namespace tidal::cuda
