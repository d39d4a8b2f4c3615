// Attention of long chunks over K and V in host memory: each layer's part of the context is copied to the device while
// the layers before compute.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/cuda/pass/op_list.h"
#include "backend/cuda/pass/step_upload.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/split_memory.h"

namespace tidal::cuda {

/// A long chunk reads its context once for every 64 or 128 of its rows and every head, which host memory is too slow
/// for. Blocks there are copied into the staged slots of SplitKvMemory by copy engines, on a stream of their own, as
/// soon as the layer that had them before is through; the kernel gets a table in which these slots stand for theirs.
/// What there is no memory for is read where it is.
class KvStaging {
 public:
  /// Contexts have up to so many positions.
  void reserve(int max_context) { max_context_ = max_context; }
  /// `list`, of which `upload` has the tables, is about to be launched on `stream`. Starts to copy for the first
  /// layers.
  void begin(const OpList& list, const StepUpload& upload, cudaStream_t stream);
  /// For the next PrefillOp of the list: has its kernel wait for what it reads, and returns its block table, device
  /// memory.
  const int32_t* table(const PrefillOp& op, const StepUpload& upload);
  /// Its kernel was launched.
  void launched(const PrefillOp& op);
  /// Nothing of the list is launched any more.
  void abandon();

 private:
  /// Neighbours among host slots that are neighbours among staged slots.
  struct Run {
    int slot = 0, staged = 0, count = 0;
  };
  struct StagedChunk {
    int chunk = 0;
    size_t table = 0;          // where its table starts
    std::vector<Run> earlier;  // blocks that the pass does not write to
    std::vector<Run> own;      // those that it writes to
  };

  const StagedChunk* find(int chunk) const;
  /// Its table goes behind those that there are.
  void add(const PrefillOp& op, const StepUpload& upload);
  void make_slots(SplitKvMemory& memory, int wanted);
  void upload_tables();
  void fetch_more();
  int buffer_of(const PrefillOp& op) const;
  void copy(const PrefillOp& op, std::span<const Run> runs, cudaStream_t stream) const;

  int max_context_ = 0;
  Stream copies_;
  Event begun_, uploaded_;
  std::array<Event, 2> fetched_, used_;  // of each buffer
  std::array<bool, 2> busy_ = {};        // it waits for a kernel that is not launched yet

  cudaStream_t stream_ = nullptr;
  SplitKvMemory* memory_ = nullptr;  // of the pass; null: nothing is staged
  std::vector<const PrefillOp*> ops_;
  size_t next_ = 0;  // to be fetched
  std::vector<StagedChunk> chunks_;
  std::vector<int32_t> tables_;
  Buffer pinned_, device_;
};

}  // namespace tidal::cuda
