// Asking for K and V that are in a file before they are read.
#pragma once

#include <cstdint>
#include <span>

#include "backend/batch.h"

namespace tidal {

/// Of one layer at a time. Reads that were asked for wait for the disk together, those that were not one by one. While
/// nothing has had to wait for a disk lately, nothing is asked for: all that is read is in memory.
class KvRequests {
 public:
  /// Before K and V of a layer are read, and when they were.
  void begin(const KvLayer& kv);
  void end();
  /// Whether to ask.
  explicit operator bool() const { return kv_.file && left_ > 0; }

  // From any thread.

  /// The rows of these positions.
  void ask_for(const Chunk& chunk, int kv_head, std::span<const int32_t> positions) const;
  /// Those of positions [begin, end), as far as the chunk sees that many.
  void ask_for(const Chunk& chunk, int kv_head, int begin, int end) const;

 private:
  KvLayer kv_;
  int64_t faults_ = 0, missed_ = 0;  // when it began
  int left_ = 0;                     // layers to ask for
};

}  // namespace tidal
