// Decode rows whose K and V lie in host memory that the device reads, and once more on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/row_cache/row_cache.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/scan/sketch_blocks.h"
#include "support/random.h"

namespace tidal::test {

/// One layer, single rows of sequences, and a row cache. All slots are pinned memory; those below device_slots() are
/// only called device memory, so that they are read in place.
class HostRows {
 public:
  struct Shape {
    int heads = 0, kv_heads = 0, head_dim = 0;
    Scope scope = Scope::Kv;
    KvType type = KvType::Bf16;
  };
  static constexpr int kSelected = 64;  // positions of a set
  static constexpr int kLayer = 3;

  /// `cached`: rows of a KV head.
  HostRows(const Shape& shape, const std::vector<int>& contexts, int cached)
      : shape_(shape), contexts_(contexts), stream_(cuda::make_stream()) {
    policy_ = {.scope = shape.scope, .pooling = Pooling::Max, .budget = kSelected, .sinks = 2, .recent = 8};
    for (const int context : contexts) slots_ += blocks_for(context);
    RowCacheRoom room{.layers = {kLayer},
                      .rows = cached,
                      .heads = shape.heads,
                      .kv_heads = shape.kv_heads,
                      .row_bytes = layout().bytes(),
                      .sequences = rows(),
                      .policy = policy_};
    cache_ = cuda::RowCache(room);
    host_ = cuda::allocate_pinned(slot_bytes() * static_cast<size_t>(slots_), "a test");
    plain_ = cuda::allocate_device(host_.bytes(), "a test");
    positions_ = ints(rows()), row_chunk_ = ints(rows()), blocks_ = ints(slots_), generations_ = ints(slots_);
    number_ = ints(1);
    chunks_ = cuda::allocate_device(sizeof(cuda::DeviceChunk) * contexts.size(), "a test");
    selected_ = ints(rows() * units() * most()), counts_ = ints(rows() * units());
    q_ = ints(rows() * width()), out_ = ints(rows() * width());
    Hyperparameters hp;
    hp.heads = shape.heads, hp.kv_heads = shape.kv_heads, hp.head_dim = shape.head_dim;
    attention_.reserve(hp, rows(), *std::max_element(contexts.begin(), contexts.end()));
    own_.resize(static_cast<size_t>(slots_));
    latest_.resize(own_.size());
    sets_.resize(static_cast<size_t>(rows() * units()));
    for (int slot = 0; slot < slots_; ++slot) write(slot);
    ask(0);
  }

  int rows() const { return static_cast<int>(contexts_.size()); }
  int slots() const { return slots_; }
  int device_slots() const { return device_slots_; }

  /// Has every row's blocks lie anywhere, this share of the slots on the device.
  void place(double share) {
    device_slots_ = static_cast<int>(share * slots_);
    own_ = random_.permutation(slots_);
    upload_tables(own_, false);
  }
  /// Has all rows, of one context, read the first one's blocks.
  void share() { upload_tables(own_, true); }

  /// The next step: of what is placed and written before.
  void step() {
    ++step_;
    put(number_, std::vector<uint32_t>{step_});
    std::vector<uint32_t> generations;
    for (const int32_t slot : table_) generations.push_back(latest_[static_cast<size_t>(slot)]);
    put(generations_, generations);
  }

  /// New content for a slot.
  void write(int slot) {
    std::vector<float> key(static_cast<size_t>(shape_.head_dim)), value(key.size());
    std::vector<std::byte> values(slot_bytes());
    for (size_t at = 0; at < values.size(); at += static_cast<size_t>(layout().bytes())) {
      for (float& one : key) one = random_.normal(1);
      for (float& one : value) one = random_.normal(1);
      write_kv_row(layout(), key.data(), value.data(), values.data() + at);
    }
    sync();
    std::memcpy(host_.as<std::byte>() + slot_bytes() * static_cast<size_t>(slot), values.data(), slot_bytes());
    put(plain_, values, slot_bytes() * static_cast<size_t>(slot));
    latest_[static_cast<size_t>(slot)] = ++generation_;
  }
  /// Zeros in all blocks but each row's last, whether anybody is told or not.
  void wipe(bool tells) {
    sync();
    for (size_t r = 0; r < contexts_.size(); ++r) {
      for (int b = 0; b + 1 < blocks_for(contexts_[r]); ++b) {
        const auto slot = static_cast<size_t>(table_[static_cast<size_t>(first_[r] + b)]);
        std::memset(host_.as<std::byte>() + slot_bytes() * slot, 0, slot_bytes());
        cuda::check(cudaMemset(plain_.as<std::byte>() + slot_bytes() * slot, 0, slot_bytes()), "a test");
        if (tells) latest_[slot] = ++generation_;
      }
    }
    cuda::check(cudaDeviceSynchronize(), "a test");
  }

  /// Selects at random: of every set this share of the positions before stays.
  void walk(double share) {
    std::vector<int32_t> all(static_cast<size_t>(rows() * units() * most()), -1), counts;
    for (int r = 0; r < rows(); ++r) {
      for (int u = 0; u < units(); ++u) {
        auto& set = sets_[static_cast<size_t>(r * units() + u)];
        choose(contexts_[static_cast<size_t>(r)], share, set);
        std::copy(set.begin(), set.end(), all.begin() + ptrdiff_t{r * units() + u} * most());
        counts.push_back(static_cast<int32_t>(set.size()));
      }
    }
    put(selected_, all);
    put(counts_, counts);
  }
  /// New queries.
  void ask(uint64_t stream) {
    Random random(stream);
    std::vector<float> q(static_cast<size_t>(rows() * width()));
    for (float& value : q) value = random.normal(1.5f);
    put(q_, q);
  }
  /// Keeps sketches of 2 bits, of what is in the slots now.
  void sketch() {
    const SketchLayout layout{shape_.head_dim, 2};
    sketches_ = cuda::allocate_device(layout.bytes() * static_cast<size_t>(shape_.kv_heads * slots_), "a test");
    cuda::launch_sketch_blocks(kv(false), blocks_.as<BlockId>(), slots_, stream_);
  }

  /// Outputs of all rows, with K and V in host memory and the cache, or on the device.
  std::vector<float> attend(Role role, bool on_host) {
    launch(role, on_host);
    return outputs();
  }
  void capture(Role role) {
    cuda::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "a test");
    launch(role, true);
    cudaGraph_t captured = nullptr;
    cuda::check(cudaStreamEndCapture(stream_, &captured), "a test");
    const cuda::Graph graph(captured);
    cudaGraphExec_t made = nullptr;
    cuda::check(cudaGraphInstantiate(&made, graph, 0), "a test");
    graph_ = cuda::GraphExec(made);
  }
  std::vector<float> replay() {
    cuda::check(cudaGraphLaunch(graph_, stream_), "a test");
    return outputs();
  }

  std::vector<int32_t> selected() { return get<int32_t>(selected_.as<int32_t>(), selected_.bytes()); }
  std::vector<cuda::RowTag> tags() {
    const cuda::CachedRows cached = layer().cached;
    return get<cuda::RowTag>(cached.tags,
                             sizeof(cuda::RowTag) * cuda::kWays * cached.sets * static_cast<size_t>(shape_.kv_heads));
  }

 private:
  int units() const { return scope_units(shape_.scope, shape_.heads, shape_.kv_heads); }
  int most() const { return most_selected(policy_); }
  int width() const { return shape_.heads * shape_.head_dim; }
  KvRowLayout layout() const { return {shape_.type, shape_.head_dim}; }
  size_t slot_bytes() const {
    return static_cast<size_t>(layout().bytes()) * kBlockTokens * static_cast<size_t>(shape_.kv_heads);
  }
  static Buffer ints(int count) {
    return cuda::allocate_device(sizeof(int32_t) * static_cast<size_t>(count), "a test");
  }
  void sync() { cuda::check(cudaStreamSynchronize(stream_), "a test"); }

  template <typename Value>
  void put(const Buffer& to, const std::vector<Value>& values, size_t offset = 0) {
    sync();
    cuda::check(
        cudaMemcpy(to.as<std::byte>() + offset, values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice),
        "a test");
  }
  template <typename Value>
  std::vector<Value> get(const void* from, size_t bytes) {
    sync();
    std::vector<Value> values(bytes / sizeof(Value));
    cuda::check(cudaMemcpy(values.data(), from, bytes, cudaMemcpyDeviceToHost), "a test");
    return values;
  }
  std::vector<float> outputs() { return get<float>(out_.as<float>(), out_.bytes()); }

  /// Ascending; the row's own position is among them.
  void choose(int context, double share, std::vector<int32_t>& set) {
    std::vector<char> taken(static_cast<size_t>(context));
    for (const int32_t position : set) taken[static_cast<size_t>(position)] = random_.uniform(0.5f) + 0.5f < share;
    taken.back() = 1;
    auto left = kSelected - std::count(taken.begin(), taken.end(), char{1});
    while (left > 0) {
      char& one = taken[static_cast<size_t>(random_.integer(0, context - 1))];
      if (one) continue;
      one = 1;
      --left;
    }
    set.clear();
    for (int p = 0; p < context; ++p) {
      if (taken[static_cast<size_t>(p)]) set.push_back(p);
    }
    if (set.size() > kSelected) set.erase(set.begin(), set.end() - kSelected);
  }

  void upload_tables(const std::vector<int32_t>& slots, bool shared) {
    std::vector<int32_t> positions, row_chunk;
    std::vector<cuda::DeviceChunk> chunks;
    table_ = slots;
    first_.clear();
    int first = 0;
    for (int r = 0; r < rows(); ++r) {
      const int context = contexts_[static_cast<size_t>(r)];
      positions.push_back(context - 1);
      row_chunk.push_back(r);
      first_.push_back(first);
      chunks.push_back({nullptr, r, 1, context - 1, context, first, policy_.budget, policy_.sinks, policy_.recent, 1});
      if (shared) std::copy_n(table_.begin(), blocks_for(context), table_.begin() + first);
      first += blocks_for(context);
    }
    put(positions_, positions), put(row_chunk_, row_chunk), put(blocks_, table_), put(chunks_, chunks);
  }

  KvLayer kv(bool on_host) const {
    KvLayer kv{.kv_heads = shape_.kv_heads, .head_dim = shape_.head_dim, .type = shape_.type};
    kv.data = on_host ? host_.as<std::byte>() : plain_.as<std::byte>();
    if (on_host) kv.device_slots = device_slots_;
    if (sketches_.bytes() > 0) kv.sketches[1] = sketches_.as<std::byte>();
    return kv;
  }

  cuda::RowCacheLayer layer() const {
    Chunk chunk;
    chunk.policy = policy_;
    return cache_.layer(kLayer, kv(true), chunk);
  }

  void launch(Role role, bool on_host) {
    cuda::AttendParams params;
    params.tables = {nullptr,
                     positions_.as<int32_t>(),
                     row_chunk_.as<int32_t>(),
                     blocks_.as<int32_t>(),
                     chunks_.as<cuda::DeviceChunk>(),
                     nullptr,
                     on_host ? generations_.as<uint32_t>() : nullptr,
                     on_host ? number_.as<uint32_t>() : nullptr};
    params.rows = rows();
    params.role = role;
    params.scope = policy_.scope, params.pooling = policy_.pooling, params.sketch_bits = policy_.sketch_bits;
    params.q = {q_.as<float>(), rows(), width()};
    params.out = {out_.as<float>(), rows(), width()};
    params.kv = kv(on_host);
    params.early = true;
    params.selection = {selected_.as<int32_t>(), counts_.as<int32_t>(), units() * most(), units()};
    if (on_host) params.row_cache = layer();
    attention_.attend(params, stream_);
  }

  Shape shape_;
  std::vector<int> contexts_, first_;
  Policy policy_;
  Random random_{11};
  int slots_ = 0, device_slots_ = 0;
  uint32_t step_ = 0, generation_ = 0;
  std::vector<int32_t> own_, table_;
  std::vector<uint32_t> latest_;            // generation of each slot
  std::vector<std::vector<int32_t>> sets_;  // what is selected, [rows, units]
  cuda::Stream stream_;
  cuda::RowCache cache_;
  Buffer host_, plain_, positions_, row_chunk_, blocks_, generations_, number_, chunks_, selected_, counts_, q_, out_;
  Buffer sketches_;
  cuda::DecodeAttention attention_;
  cuda::GraphExec graph_;
};

}  // namespace tidal::test
