#include "engine/engine_memory.h"

#include <algorithm>
#include <limits>
#include <span>

#include "backend/kv_file.h"
#include "core/available_memory.h"
#include "core/error.h"
#include "engine/kv_pool.h"
#include "engine/sequence_windows.h"

namespace tidal {
namespace {

/// Blocks of a window that ends anywhere, and of what can be taken back before it.
int blocks_of_window(const Hyperparameters& hp) {
  return blocks_for(hp.largest_window() - 1 + SequenceWindows::kSlack) + 1;
}

/// As many blocks as all sequences may need at once: each its window and a token, one of them a chunk.
int window_blocks(const Hyperparameters& hp, const EngineOptions& options, const EngineSizes& sizes) {
  // States and windows would have to be saved at the same positions.
  if (options.whole_windows || hp.recurrent_layers() > 0) return 0;
  if (hp.largest_window() == 0 || hp.largest_window() >= options.context) return 0;
  const int64_t each = (int64_t{1} + options.windows) * blocks_of_window(hp) + 1;
  const int64_t blocks = 1 + each * options.sequences + blocks_for(sizes.chunk) + 1;  // with kNoBlock
  return blocks < sizes.blocks ? static_cast<int>(blocks) : 0;
}

/// Blocks that a pass writes to, and one more: with fewer on the device blocks would come and go in one pass.
int least_device_blocks(const EngineOptions& options, const EngineSizes& sizes) {
  return std::min(sizes.blocks, blocks_for(sizes.chunk) + 1 + options.sequences);
}

/// K and V of one block, in all layers that these blocks are of.
int64_t block_bytes(const Hyperparameters& hp, const EngineOptions& options, const EngineSizes& sizes) {
  return KvPool::cache_bytes(hp, 1, sizes.window_blocks, options.kv_type) -
         KvPool::cache_bytes(hp, 0, sizes.window_blocks, options.kv_type);
}

int device_blocks(const Hyperparameters& hp, const EngineOptions& options, const EngineSizes& sizes) {
  int64_t blocks = sizes.blocks;
  if (options.kv_place.kind == KvPlace::Kind::Bytes) {
    const int64_t wanted = options.kv_place.bytes / std::max<int64_t>(block_bytes(hp, options, sizes), 1);
    blocks = std::clamp<int64_t>(wanted, least_device_blocks(options, sizes), sizes.blocks);
  }
  return static_cast<int>(std::min<int64_t>(blocks, options.device_blocks));
}

/// Whether blocks may be in host memory.
bool may_leave(const Backend& backend, const EngineOptions& options) {
  return options.kv_place.kind != KvPlace::Kind::All && !backend.device().empty() && backend.host_kv_problem().empty();
}

int64_t sketch_bytes(const Hyperparameters& hp, int bits, const EngineSizes& sizes) {
  return hp.sketched_layers() * SketchLayout{hp.head_dim, bits}.bytes() * hp.kv_heads * sizes.blocks;
}

int64_t value_sketch_bytes(const Hyperparameters& hp, const EngineSizes& sizes) {
  return hp.sketched_layers() * ValueSketchLayout{hp.head_dim}.bytes() * hp.kv_heads * sizes.blocks;
}

/// The plans that such an engine decodes by, one after the other.
std::vector<Plan> all_plans(const Plan& plan, const EngineOptions& options) {
  std::vector<Plan> plans = options.later_plans;
  plans.push_back(plan);
  return plans;
}

/// What a plan's completion takes of the backend.
int64_t completion_bytes(const Backend& backend, const Hyperparameters& hp, const Plan& plan, int rows, int context) {
  return plan.completes() ? backend.completion_bytes(hp, plan.policy.at(context), rows, context) : 0;
}

/// What other plans have left when one has its turn: sketches of all widths are kept, and the largest completion's work
/// space.
int64_t left_by_others(const Backend& backend, const Hyperparameters& hp, std::span<const Plan> plans, const Plan& one,
                       const EngineSizes& sizes, int context) {
  int64_t others = 0;
  for (const int bits : kSketchBits) {
    const bool kept = std::any_of(plans.begin(), plans.end(),
                                  [&](const Plan& other) { return other.scans() && other.policy.sketch_bits == bits; });
    const bool own = one.scans() && one.policy.sketch_bits == bits;
    if (kept && !own) others += sketch_bytes(hp, bits, sizes);
  }
  const bool values = std::any_of(plans.begin(), plans.end(), [](const Plan& other) { return other.completes(); });
  if (values && !one.completes()) others += value_sketch_bytes(hp, sizes);
  const int64_t own = completion_bytes(backend, hp, one, sizes.rows, context);
  int64_t most = own;
  for (const Plan& other : plans) most = std::max(most, completion_bytes(backend, hp, other, sizes.rows, context));
  return others + most - own;
}

/// fitting_blocks() of all plans.
int fitting_all(const Backend& backend, const Hyperparameters& hp, const Plan& plan, const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  const std::vector<Plan> plans = all_plans(plan, options);
  const int64_t free = backend.free_bytes();
  int blocks = sizes.blocks;
  for (const Plan& one : plans) {
    const int64_t others = left_by_others(backend, hp, plans, one, sizes, options.context);
    blocks = std::min(blocks, fitting_blocks(backend, hp, one, options, free - others));
  }
  return blocks;
}

/// The fewest cached rows that are worth while: with fewer than a step reads each would push out what it needs next.
int least_cached_rows(std::span<const Plan> plans, const EngineOptions& options) {
  int least = 0;
  for (const Plan& plan : plans) {
    if (plan.has_sparse()) least = std::max(least, std::min(plan.policy.at(options.context).budget, options.context));
  }
  return least;
}

/// `options` with as many cached rows as there is memory for, where there is not enough for those that there should be.
EngineOptions with_cached_rows(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                               const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  if (options.cached_rows || sizes.device_blocks == sizes.blocks) return options;
  const std::vector<Plan> plans = all_plans(plan, options);
  const int64_t free = backend.free_bytes();
  const auto fits = [&](const EngineOptions& own) {
    return std::all_of(plans.begin(), plans.end(), [&](const Plan& one) {
      return engine_memory(backend, hp, one, own).total() +
                 left_by_others(backend, hp, plans, one, sizes, options.context) <=
             free;
    });
  };
  if (fits(options)) return options;
  int rows = 0;
  for (const Plan& one : plans) {
    rows = std::max(rows, row_cache_room(hp, one, options, sizes.blocks - sizes.device_blocks).rows);
  }
  EngineOptions fewer = options;
  const int least = std::min(rows, least_cached_rows(plans, options));
  for (fewer.cached_rows = rows; *fewer.cached_rows > least && !fits(fewer);) {
    fewer.cached_rows = std::max(least, *fewer.cached_rows / 2);
  }
  return fewer;
}

void check_place(const Backend& backend, const EngineOptions& options, const EngineSizes& sizes) {
  if (!options.kv_place.directory.empty() && !backend.device().empty()) {
    fail("KV cache: K and V in a file are for backends on the host, backend {} runs on a device", backend.name());
  }
  if (options.kv_place.kind != KvPlace::Kind::Bytes || sizes.device_blocks == sizes.blocks) return;
  const std::string problem = backend.host_kv_problem();
  if (!problem.empty()) fail("KV cache: K and V cannot be kept in host memory: {}", problem);
}

}  // namespace

EngineSizes engine_sizes(const Backend& backend, const Hyperparameters& hp, const EngineOptions& options) {
  EngineSizes sizes;
  sizes.chunk = std::min(options.chunk.value_or(backend.prefill_rows()), options.context);
  // A whole chunk beside every other sequence's decoded token: where a prompt is cut does not depend on its company.
  sizes.rows = sizes.chunk + options.sequences - 1;
  // Every sequence may leave one block partly filled.
  sizes.blocks = blocks_for(std::max<int64_t>(options.tokens, options.context)) + options.sequences - 1;
  sizes.window_blocks = window_blocks(hp, options, sizes);
  sizes.device_blocks = device_blocks(hp, options, sizes);
  sizes.states = options.sequences * (1 + options.states);
  return sizes;
}

RowCacheRoom row_cache_room(const Hyperparameters& hp, const Plan& plan, const EngineOptions& options,
                            int host_blocks) {
  RowCacheRoom room;
  if (host_blocks == 0 || !plan.has_sparse()) return room;
  room.policy = plan.policy.at(options.context);
  room.policy.budget = std::min(room.policy.budget, options.context);
  for (size_t l = 0; l < plan.roles.size(); ++l) {
    if (reads_selected(plan.roles[l])) room.layers.push_back(static_cast<int>(l));
  }
  constexpr int kLeast = 2048, kBudgets = 8;  // with fewer, more than a tenth of what a step reads is not there
  const int64_t rows = options.cached_rows.value_or(std::max(kLeast, kBudgets * room.policy.budget));
  room.rows = static_cast<int>(std::min(rows, int64_t{host_blocks} * kBlockTokens));
  const KvShape kv = hp.kv(room.layers.front());  // those that read the whole context are alike
  room.heads = hp.heads;
  room.kv_heads = kv.heads;
  room.row_bytes = kv.row_bytes(options.kv_type) / kv.heads;
  room.sequences = options.sequences;
  return room;
}

EngineMemory engine_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                           const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  EngineMemory memory;
  memory.cache = KvPool::cache_bytes(hp, sizes.device_blocks, sizes.window_blocks, options.kv_type);
  memory.host = KvPool::cache_bytes(hp, sizes.blocks, sizes.window_blocks, options.kv_type) - memory.cache;
  if (!options.kv_place.directory.empty()) {
    memory.file = memory.cache + memory.host;
    memory.cache = KvPool::cache_bytes(hp, 0, sizes.window_blocks, options.kv_type);
    memory.host = 0;
    memory.file -= memory.cache;
  }
  memory.states = hp.state_bytes() * sizes.states;
  if (plan.scans()) {
    memory.sketches = sketch_bytes(hp, plan.policy.sketch_bits, sizes);
    if (plan.completes()) memory.sketches += value_sketch_bytes(hp, sizes);
  }
  const int64_t activations = static_cast<int64_t>(sizeof(float)) * sizes.rows *
                              (hp.width + 2 * hp.q_width() + int64_t{hp.layers} * hp.layer_input);
  memory.workspace = activations + backend.reserved_bytes(hp, sizes.rows, options.context);
  if (plan.has_sparse()) {
    const Policy policy = plan.policy.at(options.context);
    memory.workspace += static_cast<int64_t>(sizeof(int32_t)) * options.sequences *
                        scope_units(policy.scope, hp.heads, hp.kv_heads) *
                        (std::min(policy.budget, options.context) + kBlockTokens);
    memory.workspace += completion_bytes(backend, hp, plan, sizes.rows, options.context);
    memory.workspace += backend.row_cache_bytes(row_cache_room(hp, plan, options, sizes.blocks - sizes.device_blocks));
  }
  return memory;
}

int64_t left_for_copies(const Hyperparameters& hp, int64_t host_bytes, const EngineOptions& options,
                        const EngineSizes& sizes) {
  constexpr int64_t kUncounted = int64_t{512} << 20;
  const int64_t context = hp.kv_bytes_per_token(options.kv_type) * options.context;
  int layers = 0;  // whose K and V may be on the host
  for (int l = 0; l < hp.layers; ++l) layers += hp.has_kv(l) && !(sizes.window_blocks > 0 && hp.window(l) > 0) ? 1 : 0;
  return kUncounted + 2 * std::min(host_bytes, context) / std::max(1, layers);
}

int fitting_blocks(const Backend& backend, const Hyperparameters& hp, const Plan& plan, const EngineOptions& options,
                   int64_t free) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  if (engine_memory(backend, hp, plan, options).total() <= free) return sizes.device_blocks;
  EngineOptions least = options;
  least.device_blocks = least_device_blocks(options, sizes);
  const int64_t each = std::max<int64_t>(block_bytes(hp, options, sizes), 1);
  // What is cached of the host's blocks among them.
  const int64_t needed = engine_memory(backend, hp, plan, least).total();
  const int64_t others = needed - each * least.device_blocks;
  const int64_t left = (free - others - left_for_copies(hp, each * sizes.blocks, options, sizes)) / each;
  if (left < least.device_blocks) return needed <= free ? least.device_blocks : 0;
  return static_cast<int>(std::min<int64_t>(left, sizes.device_blocks));
}

EngineOptions with_device_blocks(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                                 const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  check_place(backend, options, sizes);
  // With a number that was found before, as an engine's own options have it, nothing is to be found.
  const bool open = options.kv_place.kind == KvPlace::Kind::Auto && options.device_blocks == kAllSlots;
  if (!may_leave(backend, options)) return options;
  EngineOptions placed = options;
  // Prefill copies less at a time where it finds less memory.
  if (open)
    placed.device_blocks = std::max(fitting_all(backend, hp, plan, options), least_device_blocks(options, sizes));
  return with_cached_rows(backend, hp, plan, placed);
}

int positions_on_device(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                        const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, with_device_blocks(backend, hp, plan, options));
  if (sizes.device_blocks >= sizes.blocks) return std::numeric_limits<int>::max();
  return sizes.device_blocks / options.sequences * kBlockTokens;
}

EngineMemory least_memory(const Backend& backend, const Hyperparameters& hp, const Plan& plan,
                          const EngineOptions& options) {
  const EngineSizes sizes = engine_sizes(backend, hp, options);
  check_place(backend, options, sizes);
  EngineOptions least = options;
  const bool may = options.kv_place.kind == KvPlace::Kind::Auto && may_leave(backend, options);
  if (may) least.device_blocks = least_device_blocks(options, sizes);
  if (may_leave(backend, options) && !options.cached_rows) {
    const int rows = row_cache_room(hp, plan, least, sizes.blocks).rows;
    least.cached_rows = std::min(rows, least_cached_rows(all_plans(plan, options), options));
  }
  const EngineMemory memory = engine_memory(backend, hp, plan, least);
  if (memory.file > 0) check_disk(options.kv_place.directory, memory.file, "KV cache");
  // Auto may find room on the device for all, which then asks nothing of the host.
  if (!may && !backend.device().empty()) check_host_memory(memory, options);
  return memory;
}

void check_host_memory(const EngineMemory& memory, const EngineOptions& options) {
  constexpr double kGibi = 1 << 30;
  constexpr int64_t kSpare = int64_t{512} << 20;  // for everybody else
  const int64_t available = available_memory();
  if (memory.host == 0 || memory.host + kSpare <= available) return;
  fail(
      "out of memory: a context of {} with {:.2f} GiB of K and V on the device needs {:.2f} GiB of host memory, {:.2f} "
      "GiB are available",
      options.context, static_cast<double>(memory.cache) / kGibi, static_cast<double>(memory.host) / kGibi,
      static_cast<double>(available) / kGibi);
}

}  // namespace tidal
