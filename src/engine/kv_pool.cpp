#include "engine/kv_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace tidal {

KvPool::KvPool(Backend& backend, const Hyperparameters& hp, int blocks, int states, int window_blocks, KvType type,
               int device_blocks, const std::string& directory)
    : backend_(backend),
      type_(type),
      bytes_(cache_bytes(hp, blocks, window_blocks, type)),
      blocks_(blocks),
      slots_(blocks, device_blocks),
      windows_(window_blocks, window_blocks > 0 ? hp.largest_window() : 0),
      states_(backend, hp, states) {
  add_layers(hp, window_blocks);
  allocate(hp, directory);
  for (const auto& [layer, source] : shared_) layers_[layer] = layers_[source];
  for (const int l : hp.layers_that_read_all()) {
    if (hp.has_kv(l)) sketched_.push_back(l);
  }
}

void KvPool::add_layers(const Hyperparameters& hp, int window_blocks) {
  for (int l = 0; l < hp.layers; ++l) {
    const KvShape shape = hp.kv(l);
    layers_.push_back({.kv_heads = shape.heads,
                       .head_dim = shape.head_dim,
                       .type = type_,
                       .windowed = window_blocks > 0 && hp.window(l) > 0});
    if (const int source = hp.kv_layer(l); source != l) shared_.emplace_back(l, source);
  }
}

void KvPool::allocate(const Hyperparameters& hp, const std::string& directory) {
  constexpr const char* kWhat = "KV cache";
  const auto blocks_of = [&](const KvLayer& layer) { return layer.windowed ? windows_.blocks() : blocks(); };
  KvRoom room{blocks(), slots_.device_slots(), {}, directory};
  const bool apart = slots_ || !directory.empty();
  size_t rest = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (!hp.has_kv(static_cast<int>(l))) continue;
    if (apart && !layers_[l].windowed) {
      room.slot_bytes.push_back(kv_bytes(l));
    } else {
      rest += kv_bytes(l) * static_cast<size_t>(blocks_of(layers_[l]));
    }
  }
  if (apart) kept_ = backend_.allocate_kv(room, kWhat);
  if (rest > 0) memory_ = backend_.allocate(rest, kWhat);
  auto* next = memory_.as<std::byte>();
  size_t index = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    KvLayer& layer = layers_[l];
    if (!hp.has_kv(static_cast<int>(l))) continue;
    if (apart && !layer.windowed) {
      layer.data = kept_->layer(index++);
      layer.file = kept_->file();
      if (!slots_) continue;
      layer.device_slots = slots_.device_slots();
      layer.memory = kept_.get();
    } else {
      layer.data = std::exchange(next, next + kv_bytes(l) * static_cast<size_t>(blocks_of(layer)));
    }
  }
}

int64_t KvPool::cache_bytes(const Hyperparameters& hp, int blocks, int window_blocks, KvType type) {
  const int64_t whole = hp.kv_bytes_per_token(type);
  const int64_t of_windows = window_blocks > 0 ? hp.window_bytes_per_token(type) : 0;
  return kBlockTokens * ((whole - of_windows) * blocks + of_windows * window_blocks);
}

int64_t KvPool::host_bytes() const {
  if (!slots_) return 0;
  int64_t slot = 0;
  for (const size_t bytes : kept_->room().slot_bytes) slot += static_cast<int64_t>(bytes);
  return slot * kept_->room().host_slots();
}

int64_t KvPool::file_bytes() const {
  int64_t bytes = 0;
  if (!kept_ || !kept_->file()) return bytes;
  for (const size_t slot : kept_->room().slot_bytes) bytes += static_cast<int64_t>(slot) * kept_->room().slots;
  return bytes;
}

int64_t KvPool::sketch_bytes() const {
  size_t bytes = value_sketches_.bytes();
  for (const Buffer& memory : sketches_) bytes += memory.bytes();
  return static_cast<int64_t>(bytes);
}

void KvPool::keep_sketches(int bits) {
  if (keeps_sketches(bits) || sketched_.empty()) return;
  const int head_dim = layers_[static_cast<size_t>(sketched_.front())].head_dim;  // of all these
  allocate_sketches(sketches_[bits / 2], SketchLayout{head_dim, bits}.bytes(),
                    [&](KvLayer& layer) -> std::byte*& { return layer.sketches[bits / 2]; });
}

void KvPool::keep_value_sketches() {
  if (value_sketches_.bytes() > 0 || sketched_.empty()) return;
  const int head_dim = layers_[static_cast<size_t>(sketched_.front())].head_dim;
  allocate_sketches(value_sketches_, ValueSketchLayout{head_dim}.bytes(),
                    [](KvLayer& layer) -> std::byte*& { return layer.value_sketches; });
}

template <typename Place>
void KvPool::allocate_sketches(Buffer& memory, int64_t tile_bytes, const Place& place) {
  const int64_t layer_bytes = tile_bytes * layers_[static_cast<size_t>(sketched_.front())].kv_heads * blocks();
  memory = backend_.allocate(static_cast<size_t>(layer_bytes) * sketched_.size(), "sketches of the KV cache");
  std::vector<BlockId> used;
  for (BlockId block = 0; block < blocks(); ++block) {
    if (references(block) > 0) used.push_back(slot(block));
  }
  std::byte* own = memory.as<std::byte>();
  for (const int l : sketched_) {
    KvLayer& layer = layers_[static_cast<size_t>(l)];
    place(layer) = own;
    own += layer_bytes;
    if (!used.empty()) backend_.sketch(layer, used);
  }
  for (const auto& [layer, source] : shared_) place(layers_[layer]) = place(layers_[source]);
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
    backend_.read(to, layers_[layer].tile(slot(block), 0), kv_bytes(layer));
    to += kv_bytes(layer);
  }
}

void KvPool::read_sketches(size_t layer, std::span<const BlockId> blocks, std::byte* to) const {
  for (const BlockId block : blocks) {
    each_sketch(layers_[layer], slot(block), sketch_widths(), [&](const std::byte* data, size_t bytes) {
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
  for (const BlockId block : blocks) slots_.write(block);
  // Neighbours together: of a mapping there may be some ten thousand. But no copy is of both kinds of memory.
  for (size_t first = 0, end = 0; first < blocks.size(); first = end) {
    while (++end < blocks.size() && slot(blocks[end]) == slot(blocks[end - 1]) + 1 &&
           slot(blocks[end]) != slots_.device_slots()) {
    }
    std::byte* to = layers_[layer].tile(slot(blocks[first]), 0);
    const size_t before = first * kv_bytes(layer), bytes = (end - first) * kv_bytes(layer);
    // Pages of another file in the place of its own would be memory as soon as they are written to.
    const bool may_map = descriptor >= 0 && !layers_[layer].file;
    const bool mapped = may_map && backend_.map(to, descriptor, offset + static_cast<int64_t>(before), bytes);
    if (!mapped) backend_.write(to, from + before, bytes);
  }
}

void KvPool::write_sketches(size_t layer, std::span<const BlockId> blocks, const std::byte* from, int widths,
                            size_t full) {
  for (const BlockId block : blocks) {
    each_sketch(layers_[layer], slot(block), widths, [&](std::byte* data, size_t bytes) {
      if (data) backend_.write(data, from, bytes);
      from += bytes;
    });
  }
  if (shares(layer) || (!(sketch_widths() & ~widths) && !layers_[layer].value_sketches)) return;
  std::vector<BlockId> made;
  for (const BlockId block : blocks.first(full)) made.push_back(slot(block));
  backend_.sketch(layers_[layer], made);
}

BlockId KvPool::take() {
  if (free_blocks() == 0) fail("KV cache: all {} blocks of {} tokens are in use", blocks(), kBlockTokens);
  make_room(1);
  const BlockId block = blocks_.take();
  slots_.take(block);
  return block;
}

void KvPool::provide(int more) {
  if (slots_) kept_->provide(slots_.host_slots_for(more));
}

void KvPool::make_room(int count) {
  count = std::min(count, device_blocks());
  if (!slots_ || slots_.free_on_device() >= count) return;
  provide(count - slots_.free_on_device());
  moves_.clear();
  slots_.make_room(count, moves_);
  move();
}

void KvPool::prepare(std::span<const BlockId> blocks, size_t first) {
  if (!slots_) return;
  moves_.clear();
  // For every one that comes back another one may have to leave first. Before anything moves: it may fail.
  const auto comes = [&](BlockId block) { return on_host(block) && slots_.has_content(block); };
  const auto written = blocks.subspan(std::min(first, blocks.size()));
  if (std::any_of(written.begin(), written.end(), comes)) provide(1);
  for (size_t b = first; b < blocks.size(); ++b) {
    const bool content = slots_.has_content(blocks[b]);
    slots_.write(blocks[b]);
    if (content) slots_.bring_back(blocks[b], moves_);
  }
  // Others have to be read sooner or later; a few at a time, so that no step waits for all.
  constexpr int kAtATime = 4;
  const int spare = slots_.free_on_device() - std::max(slots_.device_slots() / 16, 1);
  int left = std::min(spare, kAtATime);
  for (size_t b = std::min(first, blocks.size()); left > 0 && slots_.blocks_on_host() > 0 && b-- > 0;) {
    if (!on_host(blocks[b])) continue;
    slots_.bring_back(blocks[b], moves_);
    --left;
  }
  move();
}

void KvPool::move() {
  for (size_t first = 0, end = 0; first < moves_.size(); first = end) {
    const KvSlots::Move& move = moves_[first];
    end = first + 1;
    if (!move.content) continue;
    const auto follows = [&](const KvSlots::Move& next) {
      const auto apart = static_cast<BlockId>(end - first);
      return next.content && next.from == move.from + apart && next.to == move.to + apart;
    };
    while (end < moves_.size() && follows(moves_[end])) ++end;
    copy(move.to, move.from, static_cast<int>(end - first), false);
  }
  moves_.clear();
}

void KvPool::copy(BlockId to, BlockId from) {
  slots_.write(to);
  copy(slot(to), slot(from), 1, false);
}

void KvPool::copy(BlockId to, BlockId from, int count, bool windowed) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    const KvLayer& layer = layers_[l];
    if (!layer.data || shares(l) || layer.windowed != windowed) continue;
    backend_.copy(layer.tile(to, 0), layer.tile(from, 0), kv_bytes(l) * static_cast<size_t>(count));
    for (const int bits : kSketchBits) {
      if (!layer.keeps_sketch(bits)) continue;
      const SketchLayout layout{layer.head_dim, bits};
      backend_.copy(
          layer.sketch(bits, to, 0), layer.sketch(bits, from, 0),
          static_cast<size_t>(layout.bytes()) * static_cast<size_t>(layer.kv_heads) * static_cast<size_t>(count));
    }
    if (!layer.value_sketches) continue;
    const auto bytes = static_cast<size_t>(ValueSketchLayout{layer.head_dim}.bytes());
    backend_.copy(layer.value_sketch(to, 0), layer.value_sketch(from, 0),
                  bytes * static_cast<size_t>(layer.kv_heads) * static_cast<size_t>(count));
  }
}

}  // namespace tidal
