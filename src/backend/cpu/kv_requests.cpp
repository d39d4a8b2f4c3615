#include "backend/cpu/kv_requests.h"

#include <sys/resource.h>

#include <algorithm>

#include "backend/kv_file.h"

namespace tidal {
namespace {

/// How often this process has waited for a disk.
int64_t waits_for_disks() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_majflt;
}

}  // namespace

void KvRequests::begin(const KvLayer& kv) {
  constexpr int kLayers = 256;  // some tokens' worth: asking takes a tenth of a step where it is not needed
  kv_ = kv;
  if (!kv.file) return;
  const int64_t faults = waits_for_disks(), missed = kv.file->missed();
  if (faults != faults_ || missed != missed_) {
    left_ = kLayers;
  } else if (left_ > 0) {
    --left_;
  }
  faults_ = faults;
  missed_ = missed;
}

void KvRequests::ask_for(const Chunk& chunk, int kv_head, std::span<const int32_t> positions) const {
  const std::span<const BlockId> blocks = chunk.blocks_of(kv_);
  const auto bytes = static_cast<size_t>(kv_.row_bytes());
  const size_t page = kv_.file->page();
  size_t asked = 0;  // behind the last page
  for (const int32_t position : positions) {
    const std::byte* row = kv_.row(blocks[position / kBlockTokens], kv_head, position % kBlockTokens);
    const auto begin = reinterpret_cast<size_t>(row), end = begin + bytes;
    if (end <= asked && begin + page >= asked) continue;
    kv_.file->ask_for_rows(row, bytes);
    asked = (end + page - 1) / page * page;
  }
}

void KvRequests::ask_for(const Chunk& chunk, int kv_head, int begin, int end) const {
  const std::span<const BlockId> blocks = chunk.blocks_of(kv_);
  end = std::min(end, chunk.context());
  for (int block = begin / kBlockTokens; block < blocks_for(end); ++block) {
    kv_.file->ask_for_range(kv_.tile(blocks[block], kv_head), static_cast<size_t>(kv_.tile_bytes()));
  }
}

}  // namespace tidal
