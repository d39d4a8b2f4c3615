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

RowCacheRoom row_cache_room(const Hyperparameters& hp, const Plan& plan, const EngineOptions& options,
                            int host_blocks) {
  RowCacheRoom room;
  if (host_blocks == 0 || !plan.has_sparse()) return room;
  room.policy = plan.policy.at(options.context);
  room.policy.budget = std::min(room.policy.budget, options.context);
  for (size_t l = 0; l < plan.roles.size(); ++l) {
    if (reads_selected(plan.roles[l])) room.layers.push_back(static_cast<int>(l));
  }
  constexpr int kLeast = 2048, kBudgets = 8;  // with fewer, more than a tenth of what a step reads is not there
  const int64_t rows = options.cached_rows.value_or(std::max(kLeast, kBudgets * room.policy.budget));
  room.rows = static_cast<int>(std::min(rows, int64_t{host_blocks} * kBlockTokens));
  const KvShape kv = hp.kv(room.layers.front());  // those that read the whole context are alike
  room.heads = hp.heads;
  room.kv_heads = kv.heads;
  room.row_bytes = kv.row_bytes() / kv.heads;
  room.sequences = options.sequences;
  return room;
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
    memory.workspace += backend.row_cache_bytes(row_cache_room(hp, plan, options, sizes.blocks - sizes.device_blocks));
  }
  return memory;
}

}  // namespace tidal
