// CUDA graphs of passes that come again.
#pragma once

#include <functional>
#include <vector>

#include "backend/cuda/pass/op_list.h"
#include "backend/cuda/runtime/device.h"

namespace tidal::cuda {

/// A list of operations runs directly the first time, which also loads its kernels, is captured the second time, and
/// replayed from then on. The graphs that were used last are kept.
class Graphs {
 public:
  /// Runs `list` on `stream`, where `launch` launches all of it.
  void run(const OpList& list, cudaStream_t stream, const std::function<void()>& launch);
  /// Forgets everything: addresses that launches have in them are no longer good.
  void clear() { entries_.clear(); }
  /// Kernels in the graph that was captured last; 0: none was yet.
  int kernels() const { return kernels_; }
  /// Graphs that were captured until now.
  int captured() const { return captured_; }

 private:
  struct Entry {
    OpList list;
    GraphExec graph;  ///< null: seen once
    uint64_t used = 0;
  };

  Entry* find(const OpList& list);
  void remember(const OpList& list);

  std::vector<Entry> entries_;
  uint64_t now_ = 0;
  int kernels_ = 0, captured_ = 0;
};

}  // namespace tidal::cuda
