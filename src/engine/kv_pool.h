// The KV cache of all sequences: fixed-size blocks, handed out and reference counted.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/kv_slots.h"
#include "engine/state_pool.h"
#include "engine/window_pool.h"

namespace tidal {

/// Memory [layer][block][kv_head][64 tokens][K | V], rows of one type, of the heads that each layer has, and beside it
/// sketches of the keys where a plan scans. One block id stands for the same 64 positions in every layer. Recurrent
/// layers have no part in it: they have states. Where layers with a window keep their window only, they have block ids
/// of their own: windows(), always on the device.
/// With fewer device slots than blocks some are in host memory (KvSlots); who holds block ids need not know. What goes
/// to backends are slots. Sketches are all on the device, and move with their block.
class KvPool {
 public:
  /// `window_blocks`: of layers with a window, kNoBlock with them; 0: these keep the whole context like all others.
  /// `device_blocks`: so many blocks lie on the device at most, at least one. `directory`: all blocks but those of
  /// windows() are in a file there, of a backend on the host; empty: in memory. Throws Error with the size asked for
  /// when the memory cannot be had.
  KvPool(Backend& backend, const Hyperparameters& hp, int blocks, int states = 0, int window_blocks = 0,
         KvType type = KvType::Bf16, int device_blocks = kAllSlots, const std::string& directory = {});

  KvType type() const { return type_; }  ///< of K and V
  int blocks() const { return blocks_.blocks(); }
  int free_blocks() const { return blocks_.free(); }
  /// Of K and V, for a pool of so many blocks.
  static int64_t cache_bytes(const Hyperparameters& hp, int blocks, int window_blocks, KvType type = KvType::Bf16);
  int64_t bytes() const { return bytes_; }  ///< of K and V, on the device and the host
  int64_t host_bytes() const;               ///< of them on the host, when all blocks are in use
  int64_t file_bytes() const;               ///< of them in a file
  int64_t sketch_bytes() const;
  /// Blocks that the device has room for, all where none are on the host; blocks in use that are on the host now.
  int device_blocks() const { return slots_ ? slots_.device_slots() : blocks(); }
  int blocks_on_host() const { return slots_.blocks_on_host(); }

  /// Keeps sketches with so many bits (1, 2 or 4) of every full block from now on, those in use included, in the layers
  /// that read the whole context. Throws Error when the memory cannot be had.
  void keep_sketches(int bits);
  /// The same of the sketches of the values.
  void keep_value_sketches();

  /// A block with one reference, on the device, for which another one may move. Throws Error when none is free, or the
  /// host has no memory.
  BlockId take();
  /// Moves what take() would move for `count` blocks, which is faster at once.
  void make_room(int count);
  void add_reference(BlockId block) { blocks_.add_reference(block); }
  /// Gives a reference back; the block is free again when it was the last.
  void release(BlockId block) {
    blocks_.release(block);
    if (blocks_.references(block) == 0) slots_.release(block);
  }
  int references(BlockId block) const { return blocks_.references(block); }
  /// Copies the content of all layers that these blocks are of.
  void copy(BlockId to, BlockId from);

  /// Before a pass that reads `blocks` and writes to those from `first` on. These come to the device as far as they
  /// can; where there is more room than that, so do some of the others, the last ones first.
  void prepare(std::span<const BlockId> blocks, size_t first);
  /// Whether the blocks of a table may be elsewhere than their ids say.
  bool moves() const { return static_cast<bool>(slots_); }
  /// Where a block is now. Until the next take(), make_room() or prepare().
  BlockId slot(BlockId block) const { return slots_.slot(block); }
  bool on_host(BlockId block) const { return slots_.on_host(block); }
  /// Chunk::generations, of a block on the host.
  uint32_t generation(BlockId block) const { return slots_.generation(block); }

  WindowPool& windows() { return windows_; }
  const WindowPool& windows() const { return windows_; }
  /// The same as copy() with its blocks.
  void copy_window(BlockId to, BlockId from) { copy(to, from, 1, true); }

  StatePool& states() { return states_; }
  const StatePool& states() const { return states_; }

  // Content of blocks, by layers, in host memory.

  /// The widths of the sketches that are kept: the sum of their bits.
  int sketch_widths() const;
  /// Bytes of one block in a layer: K and V; sketches of these widths, the narrow ones first.
  size_t kv_bytes(size_t layer) const;
  size_t sketch_bytes(size_t layer, int widths) const;
  /// To `to` [blocks, kv_bytes(layer)], and [blocks, sketch_bytes(layer, sketch_widths())]: zeros of a layer that keeps
  /// none.
  void read_kv(size_t layer, std::span<const BlockId> blocks, std::byte* to) const;
  void read_sketches(size_t layer, std::span<const BlockId> blocks, std::byte* to) const;
  /// The way back. read_kv()'s bytes may also stand in a file, `descriptor`, at `offset`: then the backend may map them
  /// instead of copying.
  void write_kv(size_t layer, std::span<const BlockId> blocks, const std::byte* from, int descriptor = -1,
                int64_t offset = 0);
  /// From sketches of `widths`; those of the first `full` blocks that are kept and missing there are made, and those
  /// of values.
  void write_sketches(size_t layer, std::span<const BlockId> blocks, const std::byte* from, int widths, size_t full);

  /// Of all layers; without data those that are recurrent. Those that share K and V have those of the layer that owns
  /// them.
  std::span<const KvLayer> layers() const { return layers_; }
  Backend& backend() const { return backend_; }

 private:
  /// The sketches of `block` in `layer`: part(data, bytes) for each of `widths`; null data for those that are not kept.
  template <typename Part>
  static void each_sketch(const KvLayer& layer, BlockId block, int widths, const Part& part);

  bool shares(size_t layer) const { return !shared_.empty() && layer >= shared_.front().first; }
  bool keeps_sketches(int bits) const { return sketches_[bits / 2].bytes() > 0; }

  /// Memory for a sketch of `tile_bytes` a tile, those of blocks in use made; place(layer): where a layer's are.
  template <typename Place>
  void allocate_sketches(Buffer& memory, int64_t tile_bytes, const Place& place);
  /// All but their memory; shared_.
  void add_layers(const Hyperparameters& hp, int window_blocks);
  void allocate(const Hyperparameters& hp, const std::string& directory);
  /// `count` neighbouring slots.
  void copy(BlockId to, BlockId from, int count, bool windowed);
  /// Memory for what the host may have to take with so many more blocks.
  void provide(int more);
  /// What moves_ says.
  void move();

  Backend& backend_;
  KvType type_;
  std::unique_ptr<KvMemory> kept_;  // where blocks move, or are in a file: of the layers that these are of
  Buffer memory_;                   // of the others
  int64_t bytes_ = 0;
  std::array<Buffer, kSketchBits.size()> sketches_;  // of KvLayer::sketches, all of them
  Buffer value_sketches_;                            // of KvLayer::value_sketches
  std::vector<KvLayer> layers_;
  std::vector<int> sketched_;  // layers that a plan may have scan and that have K and V of their own
  std::vector<std::pair<size_t, size_t>> shared_;  // layers that have not, and whose they read
  BlockIds blocks_;
  KvSlots slots_;
  std::vector<KvSlots::Move> moves_;
  WindowPool windows_;
  StatePool states_;
};

}  // namespace tidal
