#include "backend/cuda/pass/kv_staging.h"

#include <algorithm>

#include "backend/cuda/runtime/error.h"

namespace tidal::cuda {
namespace {

constexpr const char* kStagingKv = "copying K and V from host memory";
constexpr size_t kDeviceSpare = size_t{128} << 20;  // device memory that is left to others
constexpr int kFewest = 64;                         // slots that are worth it

}  // namespace

void KvStaging::begin(const OpList& list, const StepUpload& upload, cudaStream_t stream) {
  ops_.clear();
  chunks_.clear();
  tables_.clear();
  memory_ = nullptr;
  next_ = 0;
  if (!list.shape.on_host || list.shape.chunks == list.shape.decode_chunks) return;
  const auto on_host = [&](const PrefillOp& op) {
    const auto slots = upload.host_blocks(op.chunk);
    return op.kv.memory && std::any_of(slots.begin(), slots.end(), [&](int s) { return s >= op.kv.device_slots; });
  };
  stream_ = stream;
  int wanted = 0;
  for (const Op& any : list.ops) {
    const auto* op = std::get_if<PrefillOp>(&any);
    if (!op || !on_host(*op)) continue;
    ops_.push_back(op);
    const auto slots = upload.host_blocks(op->chunk);
    wanted = std::max(wanted, static_cast<int>(std::count_if(slots.begin(), slots.end(),
                                                             [&](int s) { return s >= op->kv.device_slots; })));
  }
  if (ops_.empty()) return;
  auto& memory = static_cast<SplitKvMemory&>(*ops_.front()->kv.memory);
  make_slots(memory, wanted);
  if (memory.buffers() == 0) {
    ops_.clear();
    return;
  }
  memory_ = &memory;
  for (const PrefillOp* op : ops_) add(*op, upload);
  upload_tables();
  // What the passes before have written, and moved, is there.
  check(cudaEventRecord(begun_, stream_), kStagingKv);
  check(cudaStreamWaitEvent(copies_, begun_, 0), kStagingKv);
  fetch_more();
}

void KvStaging::make_slots(SplitKvMemory& memory, int wanted) {
  if (!copies_) {
    copies_ = make_stream();
    begun_ = make_event();
    uploaded_ = make_event();
    for (Event& event : fetched_) event = make_event();
    for (Event& event : used_) event = make_event();
  }
  if (memory.asked_slots() >= wanted) return;  // whatever came of it
  // For all contexts at once: to make more later would have everything wait.
  const int most = std::max(wanted, std::min(memory.room().host_slots(), blocks_for(max_context_)));
  check(cudaStreamSynchronize(stream_), kStagingKv);
  check(cudaStreamSynchronize(copies_), kStagingKv);
  memory.unstage();
  memory.ask(most);
  const size_t free = free_device_memory();
  const auto fits = [&](int slots, int buffers) {
    return static_cast<size_t>(buffers) * memory.staging_bytes(slots) + kDeviceSpare <= free;
  };
  for (int slots = most; slots >= std::min(most, kFewest); slots /= 2) {
    for (const int buffers : {2, 1}) {
      if (fits(slots, buffers) && memory.stage(slots, buffers)) return;
    }
  }
}

const KvStaging::StagedChunk* KvStaging::find(int chunk) const {
  const auto found = std::find_if(chunks_.begin(), chunks_.end(), [&](const auto& c) { return c.chunk == chunk; });
  return found == chunks_.end() ? nullptr : &*found;
}

void KvStaging::add(const PrefillOp& op, const StepUpload& upload) {
  if (find(op.chunk)) return;
  StagedChunk& chunk = chunks_.emplace_back();
  chunk.chunk = op.chunk;
  chunk.table = tables_.size();
  const auto slots = upload.host_blocks(op.chunk);
  const auto first_own = static_cast<size_t>(op.position / kBlockTokens);
  int staged = 0;
  for (size_t b = 0; b < slots.size(); ++b) {
    const int slot = slots[b];
    if (slot < op.kv.device_slots || staged == memory_->staged_slots()) {
      tables_.push_back(slot);
      continue;
    }
    std::vector<Run>& runs = b < first_own ? chunk.earlier : chunk.own;
    if (!runs.empty() && runs.back().slot + runs.back().count == slot &&
        runs.back().staged + runs.back().count == staged) {
      ++runs.back().count;
    } else {
      runs.push_back({slot, staged, 1});
    }
    tables_.push_back(memory_->first_staged() + staged++);
  }
}

void KvStaging::upload_tables() {
  const size_t bytes = sizeof(int32_t) * tables_.size();
  check(cudaEventSynchronize(uploaded_), kStagingKv);  // the last pass' copy must have left the pinned memory
  if (bytes > device_.bytes()) {
    check(cudaStreamSynchronize(stream_), kStagingKv);
    pinned_ = allocate_pinned(2 * bytes, "tables of blocks in host memory");
    device_ = allocate_device(2 * bytes, "tables of blocks in host memory");
  }
  std::copy(tables_.begin(), tables_.end(), pinned_.as<int32_t>());
  check(cudaMemcpyAsync(device_.as<void>(), pinned_.as<void>(), bytes, cudaMemcpyHostToDevice, stream_), kStagingKv);
  check(cudaEventRecord(uploaded_, stream_), kStagingKv);
}

int KvStaging::buffer_of(const PrefillOp& op) const {
  return memory_->buffer_of(memory_->index_of(reinterpret_cast<const std::byte*>(op.kv.data)));
}

void KvStaging::copy(const PrefillOp& op, std::span<const Run> runs, cudaStream_t stream) const {
  auto* const data = reinterpret_cast<std::byte*>(op.kv.data);
  const size_t bytes = memory_->slot_bytes(memory_->index_of(data));
  for (const Run& run : runs) {
    const auto to = static_cast<size_t>(memory_->first_staged()) + static_cast<size_t>(run.staged);
    const auto from = static_cast<size_t>(run.slot);
    check(cudaMemcpyAsync(data + to * bytes, data + from * bytes, static_cast<size_t>(run.count) * bytes,
                          cudaMemcpyDefault, stream),
          kStagingKv);
  }
}

void KvStaging::fetch_more() {
  for (; next_ < ops_.size(); ++next_) {
    const PrefillOp& op = *ops_[next_];
    const auto buffer = static_cast<size_t>(buffer_of(op));
    if (busy_[buffer]) return;
    // An event that was never recorded is waited for by nobody.
    check(cudaStreamWaitEvent(copies_, used_[buffer], 0), kStagingKv);
    copy(op, find(op.chunk)->earlier, copies_);
    check(cudaEventRecord(fetched_[buffer], copies_), kStagingKv);
    busy_[buffer] = true;
  }
}

const int32_t* KvStaging::table(const PrefillOp& op, const StepUpload& upload) {
  const StagedChunk* const chunk = memory_ && op.kv.memory ? find(op.chunk) : nullptr;
  if (!chunk) return upload.blocks(op.chunk, op.kv.windowed);
  check(cudaStreamWaitEvent(stream_, fetched_[static_cast<size_t>(buffer_of(op))], 0), kStagingKv);
  copy(op, chunk->own, stream_);
  return device_.as<int32_t>() + chunk->table;
}

void KvStaging::launched(const PrefillOp& op) {
  if (!memory_ || !op.kv.memory || !find(op.chunk)) return;
  const auto buffer = static_cast<size_t>(buffer_of(op));
  check(cudaEventRecord(used_[buffer], stream_), kStagingKv);
  busy_[buffer] = false;
  fetch_more();
}

void KvStaging::abandon() {
  if (copies_) cudaStreamSynchronize(copies_);
  busy_ = {};
  ops_.clear();
  memory_ = nullptr;
}

}  // namespace tidal::cuda
