#include "backend/cuda/pass/step_upload.h"

#include <algorithm>

#include "backend/cuda/runtime/error.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

void set_policy(const Chunk& chunk, DeviceChunk& to) {
  if (!chunk.sparse()) {
    to.budget = to.sinks = to.recent = 0;
    to.top_p = 1;
    return;
  }
  to.budget = chunk.policy.budget;
  to.sinks = chunk.policy.sinks;
  to.recent = chunk.policy.recent;
  to.top_p = static_cast<float>(chunk.policy.top_p);
}

}  // namespace

size_t StepUpload::bytes(int max_rows, int max_context, bool windows) {
  const size_t table = sizeof(int32_t) * static_cast<size_t>(blocks_for(max_context));
  const size_t row = 4 * sizeof(int32_t) + (windows ? 2 : 1) * (sizeof(DeviceChunk) + table);
  return row * static_cast<size_t>(max_rows);
}

void StepUpload::reserve(int max_rows, int max_context, bool windows) {
  const size_t needed = bytes(max_rows, max_context, windows);
  if (needed <= device_.bytes()) return;
  if (!copied_) copied_ = make_event();
  pinned_ = allocate_pinned(needed, "tables of a batch");
  device_ = allocate_device(needed, "tables of a batch");
}

void StepUpload::begin(const Batch& batch, cudaStream_t stream) {
  // The last pass's copy must have left the pinned memory.
  check(cudaEventSynchronize(copied_), "waiting for the tables of a batch");
  const size_t rows = batch.tokens.size(), wanted = batch.logit_rows.size(), count = batch.chunks.size();
  size_t entries = 0, window_entries = 0;
  for (const Chunk& chunk : batch.chunks) {
    entries += chunk.blocks.size();
    window_entries += chunk.window_blocks.size();
  }
  const size_t window_chunks = window_entries > 0 ? count : 0;
  used_ =
      sizeof(int32_t) * (3 * rows + wanted + entries + window_entries) + sizeof(DeviceChunk) * (count + window_chunks);
  if (used_ > pinned_.bytes()) {
    fail("cuda backend: a batch of {} rows and {} blocks, more than was reserved", rows, entries);
  }

  auto* next = pinned_.as<int32_t>();
  const auto take = [&](size_t words) { return std::exchange(next, next + words); };
  const auto on_device = [&](const int32_t* host) { return device_.as<int32_t>() + (host - pinned_.as<int32_t>()); };
  constexpr size_t kChunkWords = sizeof(DeviceChunk) / sizeof(int32_t);
  int32_t* const chunks = take(kChunkWords * count);  // first: they hold addresses
  int32_t* const of_windows = take(kChunkWords * window_chunks);
  int32_t* const tokens = take(rows);
  int32_t* const positions = take(rows);
  int32_t* const row_chunk = take(rows);
  int32_t* const logit_rows = take(wanted);
  int32_t* const blocks = take(entries);
  pinned_blocks_ = blocks;
  int32_t* const window_blocks = take(window_entries);  // counted from `blocks`, too: how many those are may change
  std::copy(batch.tokens.begin(), batch.tokens.end(), tokens);
  std::copy(batch.positions.begin(), batch.positions.end(), positions);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), logit_rows);
  chunks_ = reinterpret_cast<DeviceChunk*>(chunks);
  window_chunks_ = window_chunks > 0 ? reinterpret_cast<DeviceChunk*>(of_windows) : nullptr;
  int32_t table = 0;
  for (size_t c = 0; c < count; ++c) {
    const Chunk& chunk = batch.chunks[c];
    std::fill_n(row_chunk + chunk.first_row, chunk.rows, static_cast<int32_t>(c));
    DeviceChunk& to = chunks_[c];
    to.state = chunk.state;
    to.first_row = chunk.first_row;
    to.rows = chunk.rows;
    to.position = chunk.position;
    to.cached = chunk.cached;
    to.table = table;
    set_policy(chunk, to);
    std::copy(chunk.blocks.begin(), chunk.blocks.end(), blocks + table);
    std::copy(chunk.window_blocks.begin(), chunk.window_blocks.end(), window_blocks + table);
    if (window_chunks_) {
      window_chunks_[c] = to;
      window_chunks_[c].table += static_cast<int32_t>(entries);
    }
    table += static_cast<int32_t>(chunk.blocks.size());
  }
  tables_ = {.tokens = on_device(tokens),
             .positions = on_device(positions),
             .row_chunk = on_device(row_chunk),
             .blocks = on_device(blocks),
             .chunks = reinterpret_cast<const DeviceChunk*>(on_device(chunks)),
             .logit_rows = on_device(logit_rows),
             .generations = nullptr,
             .step = nullptr};
  upload_generations(batch, entries, stream);
  window_tables_ = tables_;
  if (window_chunks_) window_tables_.chunks = reinterpret_cast<const DeviceChunk*>(on_device(of_windows));
  copy(stream);
}

void StepUpload::upload_generations(const Batch& batch, size_t entries, cudaStream_t stream) {
  ++step_;
  if (std::none_of(batch.chunks.begin(), batch.chunks.end(), [](const Chunk& chunk) { return chunk.on_host(); })) {
    return;
  }
  const size_t needed = sizeof(uint32_t) * (1 + entries);
  if (needed > device_generations_.bytes()) {
    // Twice as many as now: where it lies is part of graphs.
    pinned_generations_ = allocate_pinned(2 * needed, "generations of blocks");
    device_generations_ = allocate_device(2 * needed, "generations of blocks");
  }
  auto* next = pinned_generations_.as<uint32_t>();
  *next++ = step_;
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.on_host()) {
      next = std::copy(chunk.generations.begin(), chunk.generations.end(), next);
    } else {
      next = std::fill_n(next, chunk.blocks.size(), 0);
    }
  }
  check(cudaMemcpyAsync(device_generations_.as<void>(), pinned_generations_.as<void>(), needed, cudaMemcpyHostToDevice,
                        stream),
        "copying the generations of blocks");
  tables_.step = device_generations_.as<uint32_t>();
  tables_.generations = tables_.step + 1;
}

bool StepUpload::has_policies(const Batch& batch) const {
  for (size_t c = 0; c < batch.chunks.size(); ++c) {
    DeviceChunk with = chunks_[c];
    set_policy(batch.chunks[c], with);
    if (with != chunks_[c]) return false;
  }
  return true;
}

void StepUpload::set_policies(const Batch& batch, cudaStream_t stream) {
  check(cudaEventSynchronize(copied_), "waiting for the tables of a batch");
  for (size_t c = 0; c < batch.chunks.size(); ++c) set_policy(batch.chunks[c], chunks_[c]);
  copy(stream);
}

void StepUpload::copy(cudaStream_t stream) {
  check(cudaMemcpyAsync(device_.as<void>(), pinned_.as<void>(), used_, cudaMemcpyHostToDevice, stream),
        "copying the tables of a batch");
  check(cudaEventRecord(copied_, stream), "copying the tables of a batch");
}

}  // namespace tidal::cuda
