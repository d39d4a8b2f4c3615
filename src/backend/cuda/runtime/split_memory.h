// K and V of a cache on the device and in pinned host memory, under one range of addresses a layer.
#pragma once

#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cuda/runtime/driver.h"
#include "backend/kv_memory.h"

namespace tidal::cuda {

/// Why this device cannot read host memory by the addresses that it is mapped to, in a few words; "" where it can.
std::string split_memory_problem();

/// Addresses of a layer, from its first slot on:
///   [slots on the device][slots on the host][staged slots]
/// Where the second and the third part begin is a multiple of what memory is mapped by. Host memory is made by a thread
/// of its own, some ahead of what is asked for, since pinning takes the host longer than a pass should wait. Staged
/// slots are device memory into which parts of the cache are copied for a time (kv_staging.h): one or two buffers that
/// layers take in turns.
class SplitKvMemory final : public KvMemory {
 public:
  /// Throws Error with the size asked for when the device has no memory for its slots.
  SplitKvMemory(KvRoom room, const char* what);
  ~SplitKvMemory() override;

  std::byte* layer(size_t index) const override { return layers_[index].data; }
  void provide(int count) override;

  /// Makes `slots` staged slots a layer, in `buffers` (1 or 2) buffers, in place of those that there were. False when
  /// the device has no memory for them: then there are none. Nothing may use those that there were.
  bool stage(int slots, int buffers);
  void unstage();
  int staged_slots() const { return staged_slots_; }
  /// Remembers how many somebody has asked for, so that it is not tried again.
  void ask(int slots) { asked_slots_ = slots; }
  int asked_slots() const { return asked_slots_; }
  int buffers() const { return static_cast<int>(staging_.size()); }
  /// The number of the first staged slot, in every layer.
  int first_staged() const { return first_staged_; }
  /// Of the layer whose slots begin at `data`; nullptr's, and others', is -1.
  int index_of(const std::byte* data) const;
  int buffer_of(int layer) const { return layer % buffers(); }
  size_t slot_bytes(int layer) const { return room().slot_bytes[static_cast<size_t>(layer)]; }
  /// Device memory that stage() takes for each buffer.
  size_t staging_bytes(int slots) const;

 private:
  struct Layer {
    CUdeviceptr range = 0;  // reserved
    size_t range_bytes = 0;
    std::byte* data = nullptr;  // the first slot
    CUdeviceptr host = 0;       // the first slot on the host
    size_t device_bytes = 0;    // mapped from `range` on
    size_t host_bytes = 0;      // mapped from `host` on, in pieces
    CUdeviceptr staging = 0;    // the first staged slot
    size_t staging_bytes = 0;   // mapped from there on
  };

  void reserve(Layer& layer, size_t slot_bytes);
  void make_host(int count);
  /// The same; what it throws.
  std::exception_ptr try_host(int count);
  bool make_staging(int slots, int buffers);
  void run();
  void release();

  std::vector<Layer> layers_;
  std::vector<std::pair<CUdeviceptr, size_t>> pieces_;  // of host memory; each is unmapped as it was mapped
  size_t granule_ = 0;
  int first_staged_ = 0, staged_slots_ = 0, asked_slots_ = 0;
  std::vector<CUmemGenericAllocationHandle> staging_;  // buffers

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int wanted_ = 0;  // host slots
  int needed_ = 0;  // the most that provide() has waited for
  int there_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace tidal::cuda
