#include "cli/info_memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "cli/options/plan_options.h"

namespace tidal {
namespace {

constexpr double kGibi = 1 << 30;
constexpr int64_t kOthers = int64_t{1} << 30;
constexpr int kPrefillRows = 2048;  // of the cuda backend

double gibi(int64_t bytes) { return static_cast<double>(bytes) / kGibi; }

/// What a device keeps at hand of K and V in host memory.
int64_t row_cache_bytes(const Hyperparameters& hp, const Plan& plan, const EngineOptions& options, int host_blocks) {
  const RowCacheRoom room = row_cache_room(hp, plan, options, host_blocks);
  return static_cast<int64_t>(room.layers.size()) * room.rows * room.kv_heads * room.row_bytes;
}

std::optional<MemoryTable::Place> place_on(const Backend& sizes_of, const Hyperparameters& hp, const Plan& plan,
                                           const EngineOptions& options, int64_t free) {
  const EngineSizes sizes = engine_sizes(sizes_of, hp, options);
  int blocks = fitting_blocks(sizes_of, hp, plan, options, free);
  if (blocks < sizes.blocks) {
    free -= row_cache_bytes(hp, plan, options, sizes.blocks);
    blocks = fitting_blocks(sizes_of, hp, plan, options, free);
  }
  if (blocks == 0) return {};
  EngineOptions placed = options;
  placed.device_blocks = blocks;
  const EngineMemory memory = engine_memory(sizes_of, hp, plan, placed);
  return MemoryTable::Place{memory.cache, memory.host};
}

std::string without_device(const MemoryTable& table) {
  std::string caches;
  for (const MemoryTable::Cache& cache : table.caches) {
    caches += fmt::format("{}{:.2f} ({})", caches.empty() ? "" : " or ", gibi(cache.bytes), kv_type_name(cache.type));
  }
  return fmt::format(
      "\nwithout a GPU, in GiB: weights {:.2f}, sketches {:.2f}, K and V {}; with --kv-dir K and V, but for "
      "windows, need so much room on disk and no memory\n",
      gibi(table.host_weights), gibi(table.sketches), caches);
}

}  // namespace

MemoryTable memory_table(const Hyperparameters& hp, int64_t weights, int64_t host_weights, const Plan& plan,
                         int context) {
  const auto sizes_of = make_reference_backend();
  MemoryTable table;
  table.context = context;
  table.attention = plan.has_sparse() ? kind_of(plan) : "full";
  table.weights = weights;
  table.host_weights = host_weights;
  table.others = kOthers;
  for (size_t i = 0; i < table.caches.size(); ++i) {
    MemoryTable::Cache& cache = table.caches[i];
    cache.type = i == 0 ? KvType::Bf16 : KvType::Q8;
    const EngineOptions options{.context = context, .chunk = kPrefillRows, .kv_type = cache.type};
    const EngineMemory memory = engine_memory(*sizes_of, hp, plan, options);
    cache.bytes = memory.cache;
    table.sketches = memory.sketches;
    // As the cuda backend has it, with or without one.
    bool keeps = true;
    for (int l = 0; l < hp.layers; ++l) keeps = keeps && (cache.type == KvType::Bf16 || hp.kv(l).head_dim <= 256);
    for (size_t c = 0; keeps && c < kCards.size(); ++c) {
      const int64_t free = (int64_t{kCards[c]} << 30) - weights - kOthers;
      cache.places[c] = place_on(*sizes_of, hp, plan, options, free);
    }
  }
  return table;
}

std::string as_text(const MemoryTable& table) {
  std::string text = fmt::format(
      "\nmemory on a GPU at a context of {}, {} attention, in GiB: weights {:.2f}, sketches {:.2f}, about {:.1f} for "
      "the "
      "driver and what a pass computes with\n{:>10}",
      table.context, table.attention, gibi(table.weights), gibi(table.sketches), gibi(table.others), "GPU");
  for (const MemoryTable::Cache& cache : table.caches) {
    text += fmt::format("{:>24}{:>10}", fmt::format("{} cache of {:.2f}:", kv_type_name(cache.type), gibi(cache.bytes)),
                        "");
  }
  text += fmt::format("\n{:>10}", "");
  for (size_t i = 0; i < table.caches.size(); ++i) text += fmt::format("{:>22}{:>12}", "on the GPU", "in host");
  text += '\n';
  for (size_t c = 0; c < kCards.size(); ++c) {
    text += fmt::format("{:>10}", kCards[c]);
    for (const MemoryTable::Cache& cache : table.caches) {
      const auto& place = cache.places[c];
      text += place ? fmt::format("{:>22.2f}{:>12.2f}", gibi(place->device), gibi(place->host))
                    : fmt::format("{:>22}{:>12}", "does not run", "-");
    }
    text += '\n';
  }
  return text + without_device(table);
}

nlohmann::ordered_json as_json(const MemoryTable& table) {
  using Json = nlohmann::ordered_json;
  Json cards = Json::array();
  for (size_t c = 0; c < kCards.size(); ++c) {
    Json card = {{"bytes", int64_t{kCards[c]} << 30}};
    for (const MemoryTable::Cache& cache : table.caches) {
      const auto& place = cache.places[c];
      card[kv_type_name(cache.type)] = place ? Json({{"device", place->device}, {"host", place->host}}) : Json();
    }
    cards.push_back(card);
  }
  Json host = {{"weight_bytes", table.host_weights}};
  for (const MemoryTable::Cache& cache : table.caches) host[kv_type_name(cache.type)] = cache.bytes;
  return {{"context", table.context},
          {"attention", table.attention},
          {"weight_bytes", table.weights},
          {"sketch_bytes", table.sketches},
          {"other_bytes", table.others},
          {"cards", cards},
          {"without_gpu", host}};
}

}  // namespace tidal
