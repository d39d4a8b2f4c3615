#include "engine/kv_pool.h"

#include "core/error.h"

namespace tidal {

KvPool::KvPool(Backend& backend, const Hyperparameters& hp, int blocks) : backend_(backend), references_(blocks, 0) {
  const int64_t layer_elements = int64_t{2} * kBlockTokens * hp.kv_width() * blocks;
  memory_ = backend.allocate(sizeof(Bf16) * static_cast<size_t>(layer_elements) * hp.layers, "KV cache");
  for (int l = 0; l < hp.layers; ++l) {
    layers_.push_back({memory_.as<Bf16>() + l * layer_elements, hp.kv_heads, hp.head_dim});
  }
  // Handed out from the back: the first sequence gets ascending ids, which neighbours in memory.
  for (BlockId block = blocks; block-- > 0;) free_.push_back(block);
}

BlockId KvPool::take() {
  if (free_.empty()) fail("KV cache: all {} blocks of {} tokens are in use", blocks(), kBlockTokens);
  const BlockId block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void KvPool::add_reference(BlockId block) { ++references_[block]; }

void KvPool::release(BlockId block) {
  if (--references_[block] == 0) free_.push_back(block);
}

void KvPool::copy(BlockId to, BlockId from) {
  for (const KvLayer& layer : layers_) {
    const size_t bytes = sizeof(Bf16) * static_cast<size_t>(layer.tile_elements()) * layer.kv_heads;
    backend_.copy(reinterpret_cast<std::byte*>(layer.tile(to, 0)),
                  reinterpret_cast<const std::byte*>(layer.tile(from, 0)), bytes);
  }
}

}  // namespace tidal
