// What decode steps read of their contexts, counted as they run.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace tidal {

/// A position, and how many of a step's sets held it.
struct PositionReads {
  int32_t position = 0;
  int32_t sets = 0;
  bool operator==(const PositionReads&) const = default;
};

/// What one decode step read where it did not read everything. Every Sparse and Scan layer reads a set for each of its
/// policy's units (scope_units()); what Dense and Select layers read, all of it, is not counted.
struct StepReads {
  int position = 0;           ///< of the token decoded: it could read positions 0 to this one
  int sets = 0;               ///< that the layers read, one a layer and unit; 0: all layers read everything
  int sinks = 0, recent = 0;  ///< first and last positions that every set holds whatever their scores
  std::vector<PositionReads> positions = {};  ///< those that were read, ascending; sets of each: 1 to `sets`
  bool operator==(const StepReads&) const = default;
};

/// Counts for some of the sequences that a step decodes. Reads their selections back from the backend, once a layer
/// that selects, and changes nothing.
class ReadCounter final : public ForwardObserver {
 public:
  /// The engine must outlive it.
  explicit ReadCounter(Engine& engine) : engine_(engine) {}

  /// Forgets what was counted, and for whom.
  void clear() { watched_ = 0; }
  /// Counts for this sequence in the steps to come. It must stay where it is until clear().
  void add(const Sequence& sequence);
  /// What the last step read for a sequence that was added before it. Valid until clear(); once a step.
  const StepReads& reads(const Sequence& sequence);

  /// Watches the engine's steps while it exists, if there is anybody to count for.
  class Watch {
   public:
    explicit Watch(ReadCounter& counter) : engine_(counter.watched_ > 0 ? &counter.engine_ : nullptr) {
      if (engine_) engine_->set_observer(&counter);
    }
    ~Watch() {
      if (engine_) engine_->set_observer(nullptr);
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Engine* engine_;
  };

  void attended(int layer, const Batch& batch, Rows q, KvLayer kv, const Selection& selection) override;

 private:
  struct Watched {
    const Sequence* sequence = nullptr;
    StepReads reads;
    std::vector<std::vector<int32_t>> selected;  // [units] of the last selection
    int layers = 0;                              // that have read it
    std::vector<int32_t> counts;                 // [context]
  };

  /// Adds what layers have read of the last selection to the counts.
  static void add_up(Watched& watched);

  Engine& engine_;
  std::vector<Watched> entries_;  // the first watched_ of them count
  size_t watched_ = 0;
};

}  // namespace tidal
