// Memory of K and V that is a file: as much of it is in memory as the system finds room for.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backend/kv_memory.h"

namespace tidal {

/// A mapping of a file that has no name, in KvRoom::directory, and goes with it. Its room on disk is had at once, so
/// that writing to the mapping never finds the disk full. What is written gets to the disk when the system thinks fit.
class KvFile final : public KvMemory {
 public:
  /// `what` is named in the Error thrown when the file cannot be made, has no room, or cannot be mapped.
  KvFile(KvRoom room, std::string_view what);
  ~KvFile() override;

  std::byte* layer(size_t index) const override { return data_ + first_[index]; }
  void provide(int) override {}  // host slots are like the others
  const KvFile* file() const override { return this; }

  size_t page() const { return page_; }
  /// Has the pages that [from, from + bytes) touches read, and does not wait for them. From any thread.
  void ask_for(const std::byte* from, size_t bytes) const;
  /// How often something that was asked for was not in memory.
  int64_t missed() const { return missed_.load(std::memory_order_relaxed); }

 private:
  struct Descriptor {
    int number = -1;
    ~Descriptor();
  };

  size_t page_, bytes_ = 0;
  std::vector<size_t> first_;  // byte of each layer
  Descriptor file_;
  std::byte* data_ = nullptr;
  mutable std::atomic<int64_t> missed_ = 0;
};

/// Throws Error with numbers when the folder's disk has not so many bytes for `what`.
void check_disk(const std::string& directory, int64_t bytes, std::string_view what);

}  // namespace tidal
