#include "engine/kv_pool.h"

#include <cstring>

#include "core/error.h"

namespace tidal {

KvPool::KvPool(Backend& backend, const Hyperparameters& hp, int blocks, int states, int window_blocks, KvType type)
    : backend_(backend),
      type_(type),
      blocks_(blocks),
      windows_(window_blocks, window_blocks > 0 ? hp.largest_window() : 0),
      states_(backend, hp, states) {
  memory_ = backend.allocate(static_cast<size_t>(cache_bytes(hp, blocks, window_blocks, type)), "KV cache");
  auto* own = memory_.as<std::byte>();
  for (int l = 0; l < hp.layers; ++l) {
    const KvShape shape = hp.kv(l);
    const bool windowed = window_blocks > 0 && hp.window(l) > 0;
    layers_.push_back({.data = hp.has_kv(l) ? own : nullptr,
                       .kv_heads = shape.heads,
                       .head_dim = shape.head_dim,
                       .type = type,
                       .windowed = windowed});
    if (hp.has_kv(l)) own += kBlockTokens * shape.row_bytes(type) * (windowed ? window_blocks : blocks);
    if (const int source = hp.kv_layer(l); source != l) {
      layers_.back() = layers_[static_cast<size_t>(source)];
      shared_.emplace_back(l, source);
    }
  }
  for (const int l : hp.layers_that_read_all()) {
    if (hp.has_kv(l)) sketched_.push_back(l);
  }
}

int64_t KvPool::cache_bytes(const Hyperparameters& hp, int blocks, int window_blocks, KvType type) {
  const int64_t whole = hp.kv_bytes_per_token(type);
  const int64_t of_windows = window_blocks > 0 ? hp.window_bytes_per_token(type) : 0;
  return kBlockTokens * ((whole - of_windows) * blocks + of_windows * window_blocks);
}

int64_t KvPool::sketch_bytes() const {
  size_t bytes = 0;
  for (const Buffer& memory : sketches_) bytes += memory.bytes();
  return static_cast<int64_t>(bytes);
}

void KvPool::keep_sketches(int bits) {
  if (keeps_sketches(bits) || sketched_.empty()) return;
  const KvLayer& shape = layers_[static_cast<size_t>(sketched_.front())];  // of all these
  const SketchLayout layout{shape.head_dim, bits};
  const int64_t layer_bytes = layout.bytes() * shape.kv_heads * blocks();
  Buffer& memory = sketches_[bits / 2];
  memory = backend_.allocate(static_cast<size_t>(layer_bytes) * sketched_.size(), "sketches of the KV cache");
  std::vector<BlockId> used;
  for (BlockId block = 0; block < blocks(); ++block) {
    if (references(block) > 0) used.push_back(block);
  }
  std::byte* own = memory.as<std::byte>();
  for (const int l : sketched_) {
    KvLayer& layer = layers_[static_cast<size_t>(l)];
    layer.sketches[bits / 2] = own;
    own += layer_bytes;
    if (!used.empty()) backend_.sketch(layer, used);
  }
  for (const auto& [layer, source] : shared_) layers_[layer].sketches = layers_[source].sketches;
}

int KvPool::sketch_widths() const {
  int widths = 0;
  for (const int bits : kSketchBits) widths += keeps_sketches(bits) ? bits : 0;
  return widths;
}

size_t KvPool::kv_bytes(size_t layer) const {
  return static_cast<size_t>(layers_[layer].tile_bytes()) * layers_[layer].kv_heads;
}

template <typename Part>
void KvPool::each_sketch(const KvLayer& layer, BlockId block, int widths, const Part& part) {
  for (const int bits : kSketchBits) {
    if (!(widths & bits)) continue;
    part(layer.keeps_sketch(bits) ? layer.sketch(bits, block, 0) : nullptr,
         static_cast<size_t>(SketchLayout{layer.head_dim, bits}.bytes()) * layer.kv_heads);
  }
}

size_t KvPool::sketch_bytes(size_t layer, int widths) const {
  size_t bytes = 0;
  each_sketch(layers_[layer], 0, widths, [&](const std::byte*, size_t part) { bytes += part; });
  return bytes;
}

void KvPool::read_kv(size_t layer, std::span<const BlockId> blocks, std::byte* to) const {
  for (const BlockId block : blocks) {
    backend_.read(to, layers_[layer].tile(block, 0), kv_bytes(layer));
    to += kv_bytes(layer);
  }
}

void KvPool::read_sketches(size_t layer, std::span<const BlockId> blocks, std::byte* to) const {
  for (const BlockId block : blocks) {
    each_sketch(layers_[layer], block, sketch_widths(), [&](const std::byte* data, size_t bytes) {
      if (data) {
        backend_.read(to, data, bytes);
      } else {
        std::memset(to, 0, bytes);
      }
      to += bytes;
    });
  }
}

void KvPool::write_kv(size_t layer, std::span<const BlockId> blocks, const std::byte* from, int descriptor,
                      int64_t offset) {
  // Neighbours together: of a mapping there may be some ten thousand.
  for (size_t first = 0, end = 0; first < blocks.size(); first = end) {
    while (++end < blocks.size() && blocks[end] == blocks[end - 1] + 1) {
    }
    std::byte* to = layers_[layer].tile(blocks[first], 0);
    const size_t before = first * kv_bytes(layer), bytes = (end - first) * kv_bytes(layer);
    const bool mapped = descriptor >= 0 && backend_.map(to, descriptor, offset + static_cast<int64_t>(before), bytes);
    if (!mapped) backend_.write(to, from + before, bytes);
  }
}

void KvPool::write_sketches(size_t layer, std::span<const BlockId> blocks, const std::byte* from, int widths,
                            size_t full) {
  for (const BlockId block : blocks) {
    each_sketch(layers_[layer], block, widths, [&](std::byte* data, size_t bytes) {
      if (data) backend_.write(data, from, bytes);
      from += bytes;
    });
  }
  if (sketch_widths() & ~widths) backend_.sketch(layers_[layer], blocks.first(full));
}

BlockId KvPool::take() {
  if (free_blocks() == 0) fail("KV cache: all {} blocks of {} tokens are in use", blocks(), kBlockTokens);
  return blocks_.take();
}

void KvPool::copy(BlockId to, BlockId from, bool windowed) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    const KvLayer& layer = layers_[l];
    if (!layer.data || shares(l) || layer.windowed != windowed) continue;
    backend_.copy(layer.tile(to, 0), layer.tile(from, 0), kv_bytes(l));
    for (const int bits : kSketchBits) {
      if (!layer.keeps_sketch(bits)) continue;
      const SketchLayout layout{layer.head_dim, bits};
      backend_.copy(layer.sketch(bits, to, 0), layer.sketch(bits, from, 0),
                    static_cast<size_t>(layout.bytes()) * layer.kv_heads);
    }
  }
}

}  // namespace tidal
