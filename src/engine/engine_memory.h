// How large an engine is, before it is made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/sequence_states.h"
#include "model/plan.h"

namespace tidal {

/// How much of the K and V may lie on the device. The others are in host memory as soon as the device has no more room
/// for them; on the host itself all are alike.
struct KvPlace {
  enum class Kind {
    All,   ///< all of it
    Auto,  ///< all where the device has the memory, otherwise what is left beside all else
    Bytes  ///< about so much, with the blocks that a pass writes to at the least
  };
  Kind kind = Kind::All;
  int64_t bytes = 0;
  /// On the host itself: K and V are in a file in this folder, but for those of layers that keep their window only;
  /// empty: in memory.
  std::string directory = {};
};

struct EngineOptions {
  int context = 4096;             ///< most positions of one sequence
  int64_t tokens = 0;             ///< positions of all sequences together; 0: one sequence's context
  std::optional<int> chunk = {};  ///< most tokens of one prefill chunk; nullopt: Backend::prefill_rows()
  int sequences = 1;              ///< most sequences in one step
  KvType kv_type = KvType::Bf16;  ///< of the KV cache
  /// Of hybrid models: states of recurrent layers beside the one that each of these sequences goes on with.
  int states = SequenceStates::kMostSaved;
  /// Whether layers with a window keep K and V of the whole context all the same, like the others.
  bool whole_windows = false;
  KvPlace kv_place = {};
  /// Blocks of K and V that lie on the device, fewer where `kv_place` says so.
  int device_blocks = kAllSlots;
  /// Where some are: rows [K | V] of positions that the device holds of them, of each KV head of a layer that reads
  /// selected positions, those used last. nullopt: eight times the budget, at least 2048, or down to the budget what
  /// there is memory for; 0: none.
  std::optional<int> cached_rows = {};
  /// Else: earlier windows of a sequence, beside the one that it goes on with, that there is room for.
  int windows = 2;
  /// Plans that come later, beside the engine's first: KvPlace::Auto leaves what they need beside K and V.
  std::vector<Plan> later_plans = {};
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

/// `options` with the blocks on the device that KvPlace::Auto comes to, and with cached rows where fewer of them fit
/// than there should be, by the memory that is free now; weights are loaded. Those of an engine stay what they are.
/// Throws Error where K and V are to be in host memory and the backend cannot do it.
EngineOptions with_device_blocks(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                                 const EngineOptions& options);
/// Positions of each sequence of a step whose K and V such an engine has room for on the device; INT_MAX where all
/// have their place there. Throws Error as with_device_blocks().
int positions_on_device(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                        const EngineOptions& options);

/// Backend::cache_rows() of an engine with so many blocks that may be in host memory; no rows where there are none.
/// Without RowCacheRoom::memory.
RowCacheRoom row_cache_room(const Hyperparameters& hp, const Plan& plan, const EngineOptions& options, int host_blocks);

/// Bytes of the backend's memory that an engine like this takes, beside the weights, at most.
struct EngineMemory {
  int64_t cache = 0;      ///< K and V, of all layers, but what is in host memory or a file
  int64_t host = 0;       ///< K and V in host memory
  int64_t file = 0;       ///< K and V in a file
  int64_t states = 0;     ///< of recurrent layers
  int64_t sketches = 0;   ///< for plans that scan
  int64_t workspace = 0;  ///< activations and what the backend reserves

  int64_t total() const { return cache + states + sketches + workspace; }
};
EngineMemory engine_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                           const EngineOptions& options);
/// The same before weights are loaded: with as few blocks on the device as KvPlace::Auto comes to. Throws Error as
/// with_device_blocks(), and, but with KvPlace::Auto, when the host has not the memory that the others need, or a disk
/// not the room.
EngineMemory least_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                          const EngineOptions& options);
/// Throws Error with numbers when the host has not what `memory` needs there.
void check_host_memory(const EngineMemory& memory, const EngineOptions& options);

/// How many blocks of K and V find room in `free` bytes of a device beside all else: all; or as many as leave room for
/// left_for_copies(); or, where that would be too few, those that a pass writes to; 0 where not even these do.
int fitting_blocks(const Backend& backend, const Hyperparameters& hp, const Plan& plan, const EngineOptions& options,
                   int64_t free);
/// Device memory that is worth leaving free beside all that is counted where K and V do not fit: for two layers' part
/// that is in host memory, which prefill copies ahead, and for what nobody counts.
int64_t left_for_copies(const Hyperparameters& hp, int64_t host_bytes, const EngineOptions& options,
                        const EngineSizes& sizes);

}  // namespace tidal
