// How large an engine is, before it is made.
#pragma once

#include <cstdint>
#include <optional>

#include "backend/backend.h"
#include "engine/sequence_states.h"
#include "model/plan.h"

namespace tidal {

struct EngineOptions {
  int context = 4096;             ///< most positions of one sequence
  int64_t tokens = 0;             ///< positions of all sequences together; 0: one sequence's context
  std::optional<int> chunk = {};  ///< most tokens of one prefill chunk; nullopt: Backend::prefill_rows()
  int sequences = 1;              ///< most sequences in one step
  /// Of hybrid models: states of recurrent layers beside the one that each of these sequences goes on with.
  int states = SequenceStates::kMostSaved;
  /// Whether layers with a window keep K and V of the whole context all the same, like the others.
  bool whole_windows = false;
  /// Blocks of K and V that lie on the device at most; the others are in host memory when the device has no more room.
  int device_blocks = kAllSlots;
  /// Where some are: rows [K | V] of positions that the device holds of them, of each KV head of a layer that reads
  /// selected positions, those used last. nullopt: eight times the budget, at least 2048; 0: none.
  std::optional<int> cached_rows = {};
  /// Else: earlier windows of a sequence, beside the one that it goes on with, that there is room for.
  int windows = 2;
};

/// What such an engine is made of.
struct EngineSizes {
  int chunk = 0;          ///< most tokens of one prefill chunk
  int rows = 0;           ///< most of a pass
  int blocks = 0;         ///< of KvPool
  int device_blocks = 0;  ///< of these, as many as may be on the device
  int window_blocks = 0;  ///< likewise; 0: layers with a window, if there are any, keep the whole context
  int states = 0;         ///< of StatePool
};
EngineSizes engine_sizes(const Backend& backend, const Hyperparameters& hp, const EngineOptions& options);

/// Backend::cache_rows() of an engine with so many blocks that may be in host memory; no rows where there are none.
/// Without RowCacheRoom::memory.
RowCacheRoom row_cache_room(const Hyperparameters& hp, const Plan& plan, const EngineOptions& options, int host_blocks);

/// Bytes of the backend's memory that an engine like this takes, beside the weights, at most.
struct EngineMemory {
  int64_t cache = 0;      ///< K and V, of all layers
  int64_t states = 0;     ///< of recurrent layers
  int64_t sketches = 0;   ///< for plans that scan
  int64_t workspace = 0;  ///< activations and what the backend reserves

  int64_t total() const { return cache + states + sketches + workspace; }
};
EngineMemory engine_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                           const EngineOptions& options);

}  // namespace tidal
