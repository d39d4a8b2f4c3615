#include "engine/engine_memory.h"

#include <algorithm>

#include "engine/kv_pool.h"
#include "engine/sequence_windows.h"

namespace tidal {
namespace {

/// Blocks of a window that ends anywhere, and of what can be taken back before it.
int blocks_of_window(const Hyperparameters& hp) {
  return blocks_for(hp.largest_window() - 1 + SequenceWindows::kSlack) + 1;
}

/// As many blocks as all sequences may need at once: each its window and a token, one of them a chunk.
int window_blocks(const Hyperparameters& hp, const EngineOptions& options, const EngineSizes& sizes) {
  // States and windows would have to be saved at the same positions.
  if (options.whole_windows || hp.recurrent_layers() > 0) return 0;
  if (hp.largest_window() == 0 || hp.largest_window() >= options.context) return 0;
  const int64_t each = (int64_t{1} + options.windows) * blocks_of_window(hp) + 1;
  const int64_t blocks = 1 + each * options.sequences + blocks_for(sizes.chunk) + 1;  // with kNoBlock
  return blocks < sizes.blocks ? static_cast<int>(blocks) : 0;
}

}  // namespace

EngineSizes engine_sizes(const Backend& backend, const Hyperparameters& hp, const EngineOptions& options) {
  EngineSizes sizes;
  sizes.chunk = std::min(options.chunk.value_or(backend.prefill_rows()), options.context);
  // A whole chunk beside every other sequence's decoded token: where a prompt is cut does not depend on its company.
  sizes.rows = sizes.chunk + options.sequences - 1;
  // Every sequence may leave one block partly filled.
  sizes.blocks = blocks_for(std::max<int64_t>(options.tokens, options.context)) + options.sequences - 1;
  sizes.device_blocks = std::min(options.device_blocks, sizes.blocks);
  sizes.window_blocks = window_blocks(hp, options, sizes);
  sizes.states = options.sequences * (1 + options.states);
  return sizes;
}

EngineMemory engine_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                           const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  EngineMemory memory;
  memory.cache = KvPool::cache_bytes(hp, sizes.blocks, sizes.window_blocks);
  memory.states = hp.state_bytes() * sizes.states;
  if (plan.scans()) {
    memory.sketches =
        hp.sketched_layers() * SketchLayout{hp.head_dim, plan.policy.sketch_bits}.bytes() * hp.kv_heads * sizes.blocks;
  }
  const int64_t activations = static_cast<int64_t>(sizeof(float)) * sizes.rows *
                              (hp.width + 2 * hp.q_width() + int64_t{hp.layers} * hp.layer_input);
  memory.workspace = activations + backend.reserved_bytes(hp, sizes.rows, options.context);
  if (plan.has_sparse()) {
    const Policy policy = plan.policy.at(options.context);
    memory.workspace += static_cast<int64_t>(sizeof(int32_t)) * options.sequences *
                        scope_units(policy.scope, hp.heads, hp.kv_heads) *
                        (std::min(policy.budget, options.context) + kBlockTokens);
  }
  return memory;
}

}  // namespace tidal
