#include "engine/kv_pool.h"

#include "core/error.h"

namespace tidal {

KvPool::KvPool(Backend& backend, const Hyperparameters& hp, int blocks) : backend_(backend), references_(blocks, 0) {
  const int64_t layer_elements = int64_t{2} * kBlockTokens * hp.kv_width() * blocks;
  memory_ = backend.allocate(sizeof(Bf16) * static_cast<size_t>(layer_elements) * hp.layers, "KV cache");
  for (int l = 0; l < hp.layers; ++l) {
    layers_.push_back(
        {.data = memory_.as<Bf16>() + l * layer_elements, .kv_heads = hp.kv_heads, .head_dim = hp.head_dim});
  }
  // Handed out from the back: the first sequence gets ascending ids, which neighbours in memory.
  for (BlockId block = blocks; block-- > 0;) free_.push_back(block);
}

int64_t KvPool::sketch_bytes() const {
  size_t bytes = 0;
  for (const Buffer& memory : sketches_) bytes += memory.bytes();
  return static_cast<int64_t>(bytes);
}

void KvPool::keep_sketches(int bits) {
  if (layers_[0].keeps_sketch(bits)) return;
  const SketchLayout layout{layers_[0].head_dim, bits};
  const int64_t layer_bytes = layout.bytes() * layers_[0].kv_heads * blocks();
  Buffer& memory = sketches_[bits / 2];
  memory = backend_.allocate(static_cast<size_t>(layer_bytes) * layers_.size(), "sketches of the KV cache");
  std::vector<BlockId> used;
  for (BlockId block = 0; block < blocks(); ++block) {
    if (references_[block] > 0) used.push_back(block);
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    layers_[l].sketches[bits / 2] = memory.as<std::byte>() + static_cast<int64_t>(l) * layer_bytes;
    if (!used.empty()) backend_.sketch(layers_[l], used);
  }
}

int KvPool::sketch_widths() const {
  int widths = 0;
  for (const int bits : kSketchBits) widths += layers_[0].keeps_sketch(bits) ? bits : 0;
  return widths;
}

template <typename Part>
void KvPool::each_part(const KvLayer& layer, BlockId block, int widths, const Part& part) {
  part(reinterpret_cast<std::byte*>(layer.tile(block, 0)),
       sizeof(Bf16) * static_cast<size_t>(layer.tile_elements()) * layer.kv_heads);
  for (const int bits : kSketchBits) {
    if (!(widths & bits)) continue;
    part(layer.keeps_sketch(bits) ? layer.sketch(bits, block, 0) : nullptr,
         static_cast<size_t>(SketchLayout{layer.head_dim, bits}.bytes()) * layer.kv_heads);
  }
}

int64_t KvPool::block_bytes(int widths) const {
  size_t bytes = 0;
  each_part(layers_[0], 0, widths, [&](const std::byte*, size_t part) { bytes += part; });
  return static_cast<int64_t>(bytes * layers_.size());
}

void KvPool::save(BlockId block, std::byte* to) const {
  for (const KvLayer& layer : layers_) {
    each_part(layer, block, sketch_widths(), [&](const std::byte* data, size_t bytes) {
      backend_.read(to, data, bytes);
      to += bytes;
    });
  }
}

void KvPool::load(BlockId block, const std::byte* from, int widths, bool full) {
  for (const KvLayer& layer : layers_) {
    each_part(layer, block, widths, [&](std::byte* data, size_t bytes) {
      if (data) backend_.write(data, from, bytes);
      from += bytes;
    });
    if (full && (sketch_widths() & ~widths)) backend_.sketch(layer, {&block, 1});
  }
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
    for (const int bits : kSketchBits) {
      if (!layer.keeps_sketch(bits)) continue;
      const SketchLayout layout{layer.head_dim, bits};
      backend_.copy(layer.sketch(bits, to, 0), layer.sketch(bits, from, 0),
                    static_cast<size_t>(layout.bytes()) * layer.kv_heads);
    }
  }
}

}  // namespace tidal
