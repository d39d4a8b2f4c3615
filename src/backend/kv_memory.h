// Memory of K and V that lies in two places, on the device and on the host where the device reads it, too; or in a
// file.
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace tidal {

class KvFile;

/// Of KvLayer::device_slots: every slot is device memory.
inline constexpr int kAllSlots = std::numeric_limits<int>::max();

/// What Backend::allocate_kv() makes. A slot has the room of a block in every layer.
struct KvRoom {
  int slots = 0;
  int device_slots = 0;            ///< the first so many, in device memory; the others in host memory
  std::vector<size_t> slot_bytes;  ///< of each layer that has slots, a multiple of 64
  std::string directory = {};      ///< all of them in a file in this folder; empty: in memory

  int host_slots() const { return slots - device_slots; }
};

/// Memory of allocate_kv(). Of each layer one range of addresses, the slots one behind the other: the backend's
/// operations find slot s at layer(l) + s * slot_bytes[l], wherever that lies. Slots hold anything at first.
class KvMemory {
 public:
  explicit KvMemory(KvRoom room) : room_(std::move(room)) {}
  virtual ~KvMemory() = default;
  KvMemory(const KvMemory&) = delete;
  KvMemory& operator=(const KvMemory&) = delete;

  const KvRoom& room() const { return room_; }
  virtual std::byte* layer(size_t index) const = 0;
  /// Slots in host memory have none until they are provided: sees to it that the first `count` of them have. Throws
  /// Error when the host has no more; then those that had some still do. 0 <= count <= room().host_slots().
  virtual void provide(int count) = 0;
  /// Itself where that is a file; null otherwise.
  virtual const KvFile* file() const { return nullptr; }

 private:
  KvRoom room_;
};

}  // namespace tidal
