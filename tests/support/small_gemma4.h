// Small random Gemma 4 files in all their forms.
#pragma once

#include <vector>

#include "support/gguf_writer.h"

namespace tidal::test {

struct SmallGemma4 {
  uint64_t layers = 2, width = 64, heads = 4, ffn = 96, vocab = 32;
  uint64_t window_heads = 2, window_dim = 16;  ///< KV heads of layers with a window
  uint64_t whole_heads = 1, whole_dim = 32;    ///< of those that read the whole context
  std::vector<bool> windows = {};              ///< [layers]; empty: every second one has none
  bool keys_as_values = true;                  ///< of layers that read the whole context
  uint64_t shared_kv = 0;                      ///< last layers that read K and V of earlier ones
  bool double_wide = false;                    ///< MLPs of those are twice as long
  uint64_t experts = 0, experts_used = 2, expert_ffn = 32;
  bool fused = true;         ///< gate and up of experts are one tensor
  uint64_t layer_input = 0;  ///< elements of each layer's own input

  bool window(uint64_t layer) const { return windows.empty() ? layer % 2 == 0 : windows[layer]; }
  bool has_kv(uint64_t layer) const { return layer + shared_kv < layers; }
};

/// A complete model with a context of 128 and windows of 32.
GgufWriter small_gemma4(const SmallGemma4& shape = {});
/// The value of a key that is a list of booleans.
Bytes list_of(const std::vector<bool>& values);
/// The same model with every matrix of two or more rows in a type that its rows allow: Q6_K for what the MLP gives and
/// the embedding, else Q4_K, Q8_0 where rows are short; routers stay as they are.
GgufWriter quantised(const GgufWriter& model, const SmallGemma4& shape);

}  // namespace tidal::test
